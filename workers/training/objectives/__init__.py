"""What each task computes in a pass: inputs, losses, the objective whose gradient is taken, and metrics."""
