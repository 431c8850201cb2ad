"""jaxgpt: small-scale GPT training in JAX, held to PyTorch number by number."""

import _signal  # pyright: ignore[reportMissingImports] - built in, where importing signal takes milliseconds
import sys

_IS_COMMAND = "".join(sys.argv[:1]).rpartition("/")[2] in ("-m", "jaxgpt")  # python -m, or the command jaxgpt
if _IS_COMMAND:  # signals wait until they are watched
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP))

from jaxgpt.signals import guard_command  # noqa: E402 - what follows is guarded

guard_command("jaxgpt")

from jaxgpt.errors import explain_variables  # noqa: E402 - signals are watched first

__version__ = "0.1.0"

if _IS_COMMAND:  # a verb is starting, and is about to import JAX
    explain_variables()
