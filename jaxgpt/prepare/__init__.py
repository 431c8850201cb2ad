"""Corpora to shards: `jaxgpt prepare`."""
