"""Optuna dashboard inside the API, read-only, with notes on studies and trials."""
