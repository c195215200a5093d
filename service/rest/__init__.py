"""What all endpoints share: problems, permissions, dependencies, idempotency, ETags, limits."""
