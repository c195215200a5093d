"""Who sends a request, what each route needs of them, and the log of who changed what."""
