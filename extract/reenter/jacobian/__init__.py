"""How states that come later depend on those before, averaged over problems: matrices a lens reads with."""
