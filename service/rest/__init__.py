"""What all endpoints share: problems, dependencies, idempotency, ETags, limits, health, the dashboard."""
