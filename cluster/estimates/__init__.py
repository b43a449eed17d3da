"""How much memory and time a clip takes: pure functions of what was published and what was measured."""
