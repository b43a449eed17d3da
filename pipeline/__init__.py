"""Ground floor: one clip on one card; torch is imported by `models/`, `denoising/`, `dryrun/` and cards only."""
