"""jaxgpt: small-scale GPT training in JAX, held to PyTorch number by number."""

__version__ = "0.1.0"
