"""A run's directory, and what a run reports; for both training loops."""
