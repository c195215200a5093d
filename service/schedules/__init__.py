"""Schedules: cron expressions, their firings and sweeps."""
