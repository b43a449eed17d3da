"""Commands of who may ask: keys and quotas of the own farm, and logging in to another."""
