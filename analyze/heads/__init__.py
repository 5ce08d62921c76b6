"""What every attention head does among the thoughts."""
