"""Settles train.micro_batch_size=auto and train.remat=auto for the devices at hand, as `jaxgpt plan --fit` would.

One search, `fit_settings`, asked of the same compiler, cache and estimate. The compiler is asked of a card in the table
where one process trains, and where an answer takes less than `COMPILE_S`; everything else is estimated, which leaves a
margin. A resumed run keeps what its checkpoint ran with, so that it is bit for bit the uninterrupted one. On other
devices it is chosen anew: the sums of gradients are over the same rows, only their rounding differs, and which numbers
dropout draws.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.config.auto import chosen_overrides, open_settings
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.hardware import Device, find_device
from jaxgpt.config.hardware import usable_bytes as table_bytes
from jaxgpt.errors import Failure, InputError
from jaxgpt.plan.compiler import CompileCache
from jaxgpt.plan.estimate import ESTIMATE_SHARE, estimate_run
from jaxgpt.plan.fit import explain_misfit, fit_settings
from jaxgpt.plan.topology import Topology, missing_plugin, parse_topology
from jaxgpt.run.checkpoints import choose_checkpoint, list_steps
from jaxgpt.run.remote import opened_run
from jaxgpt.run.saved_config import read_config
from jaxgpt.training.memory import gib, usable_bytes

COMPILE_S = 180
"""Seconds that the compiler may take for one setting."""
HOST_SHARE = 0.5
"""Part of a computer's memory that a run on its CPU may fill."""
CGROUP = Path("/sys/fs/cgroup/memory.max")


def describe_devices(mesh: Mesh) -> str:
    """Number and kind, as a checkpoint notes them."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def settle(
    config: Config,
    mesh: Mesh,
    cache: CompileCache,
    exchange_texts: Callable[[str], list[str]],
    say: Callable[[str], None],
    read_before: Callable[[], Config | None],
) -> tuple[dict[str, str], str]:
    """Overrides for what a config leaves open, and in words why they fit; process 0 decides for all.

    Args:
      config: complete but for that.
      read_before: the config of the checkpoint to resume from, if it was written by the same devices.

    Raises:
      InputError: nothing fits, or nobody knows how much memory the devices have; or as `read_before`.
    """
    found: dict[str, str] = {}
    about, fault = "", ""
    if jax.process_index() == 0:
        try:
            before = read_before()
            if before is not None and is_kept(before, config):
                found, about = chosen_overrides(before, config), "as in the checkpoint"
            else:
                found, about = choose(config, mesh, cache, say)
        except (InputError, Failure) as error:
            fault = str(error)
    found, about, fault = json.loads(exchange_texts(json.dumps([found, about, fault]))[0])
    if fault:
        raise InputError(fault)
    return found, about


def is_kept(before: Config, config: Config) -> bool:
    """Whether what an earlier config ran with serves this one: same batches, and same values where none is open."""
    batches, now = ((one.stage_batch_tokens(), one.stage_seq_lens()) for one in (before, config))
    has_rows = not config.train.micro_batch_size or config.stage_rows() == before.stage_rows()
    return batches == now and has_rows and config.train.remat in ("auto", before.train.remat)


def checkpoint_config(location: str, step: int | None, devices: str) -> Config | None:
    """The config of the checkpoint to resume from, if these devices wrote it; None: there is none, or others did."""
    with opened_run(location, "run.dir") as (directory, remote):
        checkpoints = directory / "checkpoints"
        if step is not None and step not in list_steps(checkpoints):
            return None  # `resume` says so
        found = choose_checkpoint(checkpoints, step, verify=False, warn=lambda _: None, remote=remote)
    if found is None or found.about.get("devices") != devices:
        return None
    return read_config(found.about, str(found.path))


def choose(config: Config, mesh: Mesh, cache: CompileCache, say: Callable[[str], None]) -> tuple[dict[str, str], str]:
    """Overrides for the open settings, and who says that they fit.

    Raises:
      InputError: nothing fits, or nobody knows how much memory the devices have.
    """
    device, limit = mesh.devices.flat[0], limit_bytes(mesh)
    if not limit:
        raise InputError(
            f"{' and '.join(open_settings(config))}: {device.device_kind} does not say how much memory it has; "
            "give the values"
        )
    config = replace(config, mesh=replace(config.mesh, data=mesh.shape["data"]))
    topology = find_topology(mesh)
    if topology is not None:
        try:
            return ask_compiler(config, topology, limit, cache, say)
        except (Failure, OSError) as error:
            say(f"{error}; the setting is chosen by an estimate")
    return ask_estimate(config, device.platform, device.device_kind, limit)


def ask_compiler(
    config: Config, topology: Topology, limit: int, cache: CompileCache, say: Callable[[str], None]
) -> tuple[dict[str, str], str]:
    """`choose` by compiled memory. Fewest compilations: the estimate says where to start.

    Args:
      config: with its mesh's axes filled in.
      limit: bytes of a device that the step may have.

    Raises:
      InputError: nothing fits.
      Failure: the compiler refused, or took too long.
    """

    def needed(one: Config) -> int:
        if not cache.knows(one, topology):
            say(f"compiling for {topology.name}: micro_batch_size={one.train.micro_batch_size} remat={one.train.remat}")
        found = cache.footprints(one, topology)
        return max(footprint.total_bytes + limit * footprint.is_over for footprint in found)

    def may_fit(one: Config) -> bool:
        return estimate_run(one, topology.platform, topology.device_kind).total_bytes <= limit

    found = fit_settings(config, lambda one: one, lambda one: needed(one) <= limit, may_fit)
    return explain(config, found, needed, limit, topology.name, "the compiler")


def ask_estimate(config: Config, platform: str, device_kind: str, limit: int) -> tuple[dict[str, str], str]:
    """`choose` by an estimate, which leaves a margin.

    Args:
      config: with its mesh's axes filled in.
      limit: bytes of a device that the step may have.

    Raises:
      InputError: nothing fits.
    """

    def needed(one: Config) -> int:
        return estimate_run(one, platform, device_kind).total_bytes

    def fits(one: Config) -> bool:
        return needed(one) <= ESTIMATE_SHARE[platform] * limit

    found = fit_settings(config, lambda one: one, fits, fits)
    return explain(config, found, needed, limit, device_kind, "an estimate")


def explain(
    config: Config,
    found: dict[str, str] | None,
    needed: Callable[[Config], int],
    limit: int,
    device: str,
    source: str,
) -> tuple[dict[str, str], str]:
    """What was found, and the memory that its largest stage needs."""
    if found is None:
        raise InputError(explain_misfit(config, f"{gib(limit)} of {device}"))
    settled = apply_overrides(config, found)
    return found, f"{gib(needed(settled.largest_stage()))} of {gib(limit)}, by {source}"


def find_topology(mesh: Mesh) -> Topology | None:
    """The mesh as planning names it; None where its compiler cannot be asked: another device, or several processes."""
    known = find_device(mesh.devices.flat[0].device_kind)
    if known is None or jax.process_count() > 1:
        return None
    try:
        topology = parse_topology(known.name if mesh.size == 1 else f"{known.name}x{mesh.size}")
    except InputError:  # not a slice of a TPU
        return None
    return None if missing_plugin(topology.platform) else topology


def limit_bytes(mesh: Mesh) -> int:
    """Memory that a step may have of one device; 0: nobody knows.

    What the runtime says, but no more than planning counts on for the card. On a CPU a part of the computer's.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return int(HOST_SHARE * host_bytes()) // len(mesh.local_devices)
    known: Device | None = find_device(device.device_kind)
    said = [size for size in (usable_bytes(mesh), table_bytes(known) if known else 0) if size]
    return min(said, default=0)


def host_bytes() -> int:
    """This computer's memory, or what its container may have of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = CGROUP.read_text().strip() if CGROUP.is_file() else ""
    return min(total, int(text)) if text.isdigit() else total
