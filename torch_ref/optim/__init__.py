"""jaxgpt/optim in PyTorch."""
