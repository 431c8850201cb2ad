"""A run taken to the other framework, or exported for other programs. A command: `jaxgpt convert`."""
