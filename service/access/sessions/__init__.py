"""Browsers that log in: their sessions, cookies and pages, and what slows guessers down."""
