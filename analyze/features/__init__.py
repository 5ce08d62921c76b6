"""What the features of a stored dictionary fire on and write, and which of them two models share."""
