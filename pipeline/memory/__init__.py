"""Memory and time of a clip before anything is loaded, without torch: footprints, tiles, slow-downs, admission."""
