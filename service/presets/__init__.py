"""The search spaces that come with Nightsweep."""
