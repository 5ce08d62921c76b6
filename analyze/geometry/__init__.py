"""The shape of the states: how many directions they fill, what these read as, how thoughts turn into one another."""
