"""What each feature of a stored dictionary does to the answer: its part taken out, beside random directions."""
