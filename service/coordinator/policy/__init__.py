"""What to do next for a study: pure functions, without I/O, clock or random numbers."""
