"""Makes glibc's malloc keep what a program frees.

On a CPU XLA asks malloc for all temporaries of a program at once, at each call. glibc gets blocks of more than 32 MB
from the system and gives them back when they are freed, so that each step pays anew for every page that it touches: a
third of the time of a small model's step (docs/log.md). Blocks above 64 MB stay with the main thread only.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""mallopt's parameters, as malloc.h has them."""
LARGEST = 2**30
"""Blocks up to this size, in bytes, stay with the process."""


def keep_freed_memory() -> bool:
    """Makes malloc reuse freed blocks of up to 1 GiB. Returns False, and does nothing, where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 2**26))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
