"""Where the answer and each thought look: shares of attention."""
