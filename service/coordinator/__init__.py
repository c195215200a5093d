"""The coordinator: the one writer of the studies whose leases it holds."""
