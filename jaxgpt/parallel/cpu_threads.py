"""Threads for simulated devices: enough that their programs cannot wait for each other forever.

XLA's CPU client has max(cores, devices) threads. They run the programs, a thread for each device, and they also launch
them: a launch waits, in its thread, while 32 programs of its device are unfinished. So once more than 32 programs are
under way, a launch can hold the thread that the last device of a collective needs. The others wait for that device,
and after 40 s XLA aborts the process. A busy machine gets there more easily.

Turning asynchronous dispatch off does not help: XLA ignores that for programs with several local devices. Twice as many
threads as devices do, as long as one Python thread launches: it launches one program at a time, which holds at most one
thread for each device, and XLA runs one program with collectives at a time, which needs as many.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax


def count_simulated_devices() -> int:
    """Devices that this process's CPU client will have; 1 unless JAX's settings or XLA_FLAGS ask for more."""
    configured = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if configured >= 0:
        return configured
    flags = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(flags[-1]) if flags else 1


@contextmanager
def enough_threads() -> Iterator[None]:
    """Within it, a CPU client that JAX creates has two threads for each simulated device, or more.

    A client that exists already keeps its threads. A larger PJRT_NPROC or NPROC, where XLA looks, stays as it is.
    """
    before = os.environ.get("PJRT_NPROC")
    n_devices = count_simulated_devices()
    if n_devices > 1:
        n_threads = int(before or os.environ.get("NPROC") or os.cpu_count() or 1)
        os.environ["PJRT_NPROC"] = str(max(n_threads, 2 * n_devices))
    try:
        yield
    finally:
        if before is not None:
            os.environ["PJRT_NPROC"] = before
        else:
            os.environ.pop("PJRT_NPROC", None)
