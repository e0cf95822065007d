"""Networks from torch: captured by ``torch.export``, raised to a graph, compared bit for bit."""
