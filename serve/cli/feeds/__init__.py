"""Commands and options around product feeds."""
