"""What a worker trains on: its device's memory, id and random generators, and whether its thread gets on."""
