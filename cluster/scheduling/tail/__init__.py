"""Plans for a batch's tail, so that it ends soonest, and for clips that come one by one: who goes, or moves, where."""
