"""Stills of every kind, made by the byte, and an independent reader's word on their colours."""
