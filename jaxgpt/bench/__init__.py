"""Timings in turns: `python -m jaxgpt.bench`."""
