"""Commands that ask a server and show its answer."""
