"""Thoughts of rightly answered problems in wrongly answered ones, and the reverse."""
