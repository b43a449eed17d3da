"""A finished clip as marketplaces take it: framed, lengthened, encoded and judged by a profile, with overlays."""
