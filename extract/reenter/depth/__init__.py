"""How many thoughts an answer takes: it is asked for after none, one, two .. and beyond those trained for."""
