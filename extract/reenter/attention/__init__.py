"""Heads ablated by their rank, and edges of attention cut or forced."""
