"""Directions added to thoughts."""
