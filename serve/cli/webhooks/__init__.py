"""`webhooks`: the commands that register URLs, try them, and show what became of messages."""
