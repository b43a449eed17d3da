"""Real faults to a real farm: processes killed, storage full, databases locked, and what has to hold afterwards."""
