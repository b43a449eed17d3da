"""A renderer: one card, one clip on it at a time, without Ray (`worker`) and as a Serve deployment (`deployment`)."""
