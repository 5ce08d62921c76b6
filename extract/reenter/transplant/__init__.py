"""Thoughts and heads of one model in another."""
