"""A local page over a whole lake, read on demand."""
