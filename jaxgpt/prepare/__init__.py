"""Corpora to shards: `python -m jaxgpt.prepare`."""
