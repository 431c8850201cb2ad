"""jaxgpt/training in PyTorch."""
