"""jaxgpt/parallel in PyTorch."""
