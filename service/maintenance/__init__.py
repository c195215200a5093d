"""Backups of both databases, and checks of what must hold between their rows."""
