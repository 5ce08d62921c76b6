"""One pass over a data set: its questions, its plan, the extraction itself, and computing it again."""
