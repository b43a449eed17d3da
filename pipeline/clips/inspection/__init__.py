"""Whether a still will give a good clip: where its product is, what spoils the picture, and how that is mended."""
