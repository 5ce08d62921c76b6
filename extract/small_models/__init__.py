"""The two small CODI models of this project: their problems, their training and their evaluation."""
