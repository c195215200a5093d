"""Commands that run on this machine: servers, databases, keys, the demo."""
