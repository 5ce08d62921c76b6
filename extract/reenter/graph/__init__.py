"""Which thought acts on which: one is changed, all later ones and the answer are measured."""
