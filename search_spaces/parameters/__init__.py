"""What one recipe field is searched over: a range or choices."""
