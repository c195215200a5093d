"""What runs on a device. Knows a recipe and a report callback; only `gpu_worker` knows Ray."""
