"""Timings in turns: `jaxgpt bench`."""
