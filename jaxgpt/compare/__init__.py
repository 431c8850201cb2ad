"""jaxgpt against torch_ref, number by number. A command: `jaxgpt compare`."""
