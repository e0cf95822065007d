"""Lowering to torch.fx."""
