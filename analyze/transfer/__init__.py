"""What is fitted on one run, tested on another."""
