"""Who may send requests: API keys and their owners, and protection against other web sites."""
