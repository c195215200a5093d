"""Pruning: what a definition may say, and the rules as pure functions of reports."""
