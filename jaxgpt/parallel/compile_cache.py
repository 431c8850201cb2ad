"""JAX's cache of compiled programs on disk."""

import os
from pathlib import Path

import jax

CACHE = Path(os.path.expanduser("~"), ".cache", "jaxgpt", "xla")


def remember_programs() -> None:
    """Keeps programs that take a second or more to compile in ~/.cache/jaxgpt/xla.

    JAX_COMPILATION_CACHE_DIR names another directory, JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and CACHE.is_absolute():  # a container may have no home
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
