"""Drafts and candidates: what waits for somebody who looks at them, and what becomes of it."""
