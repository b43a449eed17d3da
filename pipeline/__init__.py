"""Ground floor: one clip on one card. Imports nothing heavy; torch is met only below `models/`."""
