"""Webhooks over HTTP: bodies, views and routes."""
