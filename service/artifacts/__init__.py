"""Adapters and checkpoints as the service sees them: where they lie, giving them out, and removing them.

Workers write them. The API reads adapters, and the coordinator and `nightsweep artifacts sweep` remove what
nobody needs any more.
"""
