"""What a model's own decoder writes of each thought."""
