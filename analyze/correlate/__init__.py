"""Whether the thoughts that are attended to are the ones that matter."""
