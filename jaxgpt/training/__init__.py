"""State, step, compiled programs, checkpoints."""
