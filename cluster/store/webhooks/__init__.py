"""Webhooks in the store: those registered, what has to be told, and messages on their way."""
