"""API keys: made, listed, rotated, revoked, and recognised."""
