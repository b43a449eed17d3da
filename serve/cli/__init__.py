"""The command line. Client commands import neither torch nor diffusers nor Ray."""
