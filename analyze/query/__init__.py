"""SQL over a lake, and the examples at which something is largest."""
