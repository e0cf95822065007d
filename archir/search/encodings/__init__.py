"""Search spaces of the literature as ``.arch`` texts: a genome in, a program out. No torch."""
