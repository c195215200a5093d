"""Adapters and checkpoints, in a folder or behind a URL."""
