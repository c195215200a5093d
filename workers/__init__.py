"""What runs on a device. Knows a recipe and a report callback; only `actor.ray_actors` knows Ray."""

import os

# bitsandbytes has torch compile a few functions that no worker calls, and for that alone torch imports its
# compiler: a sixth of what a worker imports.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
