"""Where in a model, and after how many thoughts, the answer and the results on the way to it can be read."""
