"""Runs side by side, and the differences between them."""
