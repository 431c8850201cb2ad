"""jaxgpt: small-scale GPT training in JAX, held to PyTorch number by number."""

import sys

from jaxgpt.errors import explain_variables

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # a verb is starting, and is about to import JAX
    explain_variables()
