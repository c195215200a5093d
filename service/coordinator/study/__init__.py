"""One leased study: events in, actions out, and the repairs when its lease is taken."""
