"""Whether heads, hubs and thoughts do the same in every run."""
