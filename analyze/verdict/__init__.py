"""Verdicts on each thought: readable, used, and by what route, from what the lake has stored."""
