"""Submitted documents: their syntax, the local files that they name, their JSON Schema."""
