"""XLA_FLAGS, checked before XLA reads it: at an unknown flag it ends the process, with a line that names no fix."""

import mmap
import os
from pathlib import Path

import jaxlib

from jaxgpt.errors import InputError

USUAL = ("xla_force_host_platform_device_count", "xla_backend_optimization_level")
"""Flags that every XLA has, so that nothing is searched for the usual ones."""


def check_xla_flags(text: str) -> None:
    """Flags are looked for among the strings of XLA's library.

    Args:
      text: of the variable: flags, or the name of a file that holds them.

    Raises:
      InputError: a flag that this XLA does not have, or the file does not exist.
    """
    if text.strip() and not text.lstrip().startswith("-"):
        if not os.access(text, os.R_OK):
            raise InputError(f"XLA_FLAGS={text} in the environment is neither a flag nor a file; a flag begins with --")
        return
    names = {flag: flag.lstrip("-").partition("=")[0] for flag in text.split() if flag.startswith("--")}
    unusual = {flag: name for flag, name in names.items() if name not in USUAL and not name.startswith("xla_tpu_")}
    libraries = sorted(Path(jaxlib.__file__).parent.glob("libjax_common.*"))
    if not unusual or not libraries:
        return
    with open(libraries[0], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        for flag, name in unusual.items():
            if library.find(name.encode() + b"\0") < 0:
                raise InputError(f"XLA_FLAGS={flag} in the environment is no flag of this XLA; correct or unset it")
