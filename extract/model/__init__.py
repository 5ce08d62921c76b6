"""The model: its files, its protocol, its forward pass and what is captured of it."""
