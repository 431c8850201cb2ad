"""JAX's cache of compiled programs on disk."""

import os
from pathlib import Path

import jax

CACHE = Path(os.path.expanduser("~"), ".cache", "jaxgpt", "xla")
MIN_COMPILE_S = 0.1
"""JAX's 1 s leaves out the program that makes a state, and those that check it before a save."""


def remember_programs() -> None:
    """Keeps programs that take MIN_COMPILE_S or more to compile in ~/.cache/jaxgpt/xla.

    JAX_COMPILATION_CACHE_DIR names another directory, JAX_ENABLE_COMPILATION_CACHE=false keeps nothing, and
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is another bound.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and CACHE.is_absolute():  # a container may have no home
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
