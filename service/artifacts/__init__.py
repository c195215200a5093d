"""Adapters and checkpoints as the service sees them: where they are, sending them, removing them.

Workers write them. The API reads adapters; the coordinator and `nightsweep artifacts sweep` remove what
nobody needs any more.
"""
