"""Memory and arithmetic of a clip before anything is loaded: the real networks, run where tensors have no data."""
