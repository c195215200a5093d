"""Trials that do not train: an adapter that there is, evaluated once."""
