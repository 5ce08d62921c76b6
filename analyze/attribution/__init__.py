"""What each part of the model adds to the token that a state reads as."""
