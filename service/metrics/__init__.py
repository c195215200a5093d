"""What the service measures of itself, for Prometheus."""
