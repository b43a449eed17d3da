"""What keeps a farm whole: the audit of its store, and the sweep of what nobody needs."""
