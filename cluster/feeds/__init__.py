"""Product feeds of shops: read into a manifest's rows, written again with links to the clips, published."""
