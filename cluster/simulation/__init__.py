"""A whole farm in virtual time: the real dispatcher, placement and store over cards that are made of coroutines."""
