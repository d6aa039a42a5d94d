"""Files: atomic writes, run directories and their checkpoints, pickles read safely."""
