"""Reports: what a study found, what it cost, and what to change."""
