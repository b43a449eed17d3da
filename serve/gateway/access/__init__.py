"""Who asks the gateway: keys and sessions, the scope of every route, whose work is meant, and how often one may ask."""
