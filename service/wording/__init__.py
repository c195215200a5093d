"""Answers in words, for terminals and pages alike. Pure."""
