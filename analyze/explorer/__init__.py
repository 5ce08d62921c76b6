"""What the report and ``lake serve`` let their reader pick: problems, heads, features; one script, two sources."""
