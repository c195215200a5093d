"""Trials: what both databases say of them, together."""
