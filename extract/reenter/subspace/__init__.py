"""Which part of a thought carries a step's result: subspaces erased and exchanged."""
