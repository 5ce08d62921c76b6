"""Whether a wrong answer can be foreseen from the thoughts."""
