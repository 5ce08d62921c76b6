"""Integrated gradients of the answer with respect to the thoughts."""
