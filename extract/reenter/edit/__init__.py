"""A chosen value written into a thought."""
