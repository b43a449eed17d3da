"""The page that a browser shows of the farm: batches, clips and cards as they are, and where rows are handed in."""
