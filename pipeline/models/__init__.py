"""The networks of each family, loaded and run; torch is imported when a model is asked for."""
