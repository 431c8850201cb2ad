"""jaxgpt: small-scale GPT training in JAX, held to PyTorch number by number."""

import _signal  # pyright: ignore[reportMissingImports] - built in, where importing signal takes milliseconds
import sys

if sys.argv[:1] == ["-m"]:  # python -m: signals wait until they are watched
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP))

from jaxgpt.signals import guard_command

guard_command("jaxgpt")

from jaxgpt.errors import explain_variables  # noqa: E402 - signals are watched before anything else is imported

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # a verb is starting, and is about to import JAX
    explain_variables()
