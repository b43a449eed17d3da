"""The tables of who may ask: keys, sessions of browsers, quotas and what owners have used."""
