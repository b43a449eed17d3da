"""Changes that would start a waiting job: every small one is tried on placement itself."""
