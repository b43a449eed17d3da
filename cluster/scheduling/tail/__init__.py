"""Plans for the tail of a batch: which clips go, or move, to which card so that it ends soonest."""
