"""Range tests as studies of their own."""
