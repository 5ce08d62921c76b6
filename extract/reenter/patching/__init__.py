"""Thoughts of one problem put into another."""
