"""Kinds of values: numbers and durations, times of day, hub ids, artifact URLs."""
