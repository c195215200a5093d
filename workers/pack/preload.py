"""Imports all that a worker needs. It takes seconds, so Ray's processes do it before they are asked."""

import gc

# Hardly anything that is imported becomes garbage, and looking for it meanwhile takes an eighth of the time.
gc.disable()
try:
    import workers.pack.pack  # noqa: F401
finally:
    gc.freeze()  # nor does it later
    gc.enable()
