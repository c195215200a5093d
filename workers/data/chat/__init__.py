"""Conversations: chat templates, the turns that they render, and what carries loss in them."""
