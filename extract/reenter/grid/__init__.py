"""Interventions in every combination."""
