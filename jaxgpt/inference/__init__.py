"""A trained model opened, and tokens out of it."""
