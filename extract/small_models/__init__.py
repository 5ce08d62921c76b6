"""The small models of this project: their problems, their training and their evaluation."""
