"""What the service tells of itself while it works: logs and traces."""
