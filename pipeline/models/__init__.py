"""The networks of each family, loaded and run. Engines are imported when asked for: torch costs seconds."""
