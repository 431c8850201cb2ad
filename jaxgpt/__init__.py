"""jaxgpt: small-scale GPT training in JAX, held to PyTorch number by number.

As a library: `jaxgpt.load(source)` opens a trained model, see docs/library.md. JAX is imported with the first of these
names that is used, not with the package.
"""

import _signal  # pyright: ignore[reportMissingImports] - built in, where importing signal takes milliseconds
import sys

_IS_COMMAND = "".join(sys.argv[:1]).rpartition("/")[2] in ("-m", "jaxgpt")  # python -m, or the command jaxgpt
if _IS_COMMAND:  # signals wait until they are watched
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP))

from jaxgpt.signals import guard_command  # noqa: E402 - what follows is guarded

guard_command("jaxgpt")

from typing import TYPE_CHECKING  # noqa: E402 - signals are watched first

from jaxgpt.errors import InputError, explain_variables  # noqa: E402

if TYPE_CHECKING:
    from jaxgpt.inference.language_model import LanguageModel, load, next_token_loss

__all__ = ["InputError", "LanguageModel", "load", "next_token_loss"]
__version__ = "0.1.0"

if _IS_COMMAND:  # a verb is starting, and is about to import JAX
    explain_variables()


def __getattr__(name: str) -> object:
    if name in __all__:
        from jaxgpt.inference import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
