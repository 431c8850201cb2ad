"""torch_ref: the mirror of jaxgpt in PyTorch. Same files, functions, arguments and order of operations.

What an idea is stands in jaxgpt; here a comment says only where PyTorch differs.
"""

from jaxgpt.signals import guard_command

guard_command("torch_ref")
