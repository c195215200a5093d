"""Answers as text and tables. No requests."""
