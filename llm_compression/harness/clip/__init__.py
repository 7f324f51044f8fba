"""What of this project is measured: checkpoints, models, systems, limits, gates."""
