"""Sparse dictionaries of the activations: learned, measured, saved and read."""
