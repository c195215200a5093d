"""Studies: submitting, reading, pausing and cancelling them, and their limits."""
