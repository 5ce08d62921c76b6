"""The graph between thoughts, drawn from its stored effects."""
