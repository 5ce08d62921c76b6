"""Traces: what the thoughts of a problem read out as, chained to a solution that ends at the model's answer."""
