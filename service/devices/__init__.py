"""The cluster's machines and GPUs, and the coordinators' heartbeats."""
