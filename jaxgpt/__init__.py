"""jaxgpt: small-scale GPT training in JAX, held to PyTorch number by number."""

from jaxgpt.signals import guard_command

guard_command("jaxgpt")

__version__ = "0.1.0"
