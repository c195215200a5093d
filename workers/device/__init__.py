"""The device: its memory, its id, its random generators."""
