"""The command line; client commands import neither torch nor diffusers nor Ray."""
