"""What can be read off the states by linear probes, held out and corrected."""
