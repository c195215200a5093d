"""A pack: which trials share a base, what each costs, and what becomes of it."""
