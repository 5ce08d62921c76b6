"""Thoughts ablated by what they carry, and each of them corrupted in every way."""
