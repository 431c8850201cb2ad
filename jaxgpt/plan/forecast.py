"""What to expect of a run on a device: does it fit, how fast can it be and how fast is it likely to be, how dear."""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

from jaxgpt.config import Config, schedule
from jaxgpt.config.activations import kept_bytes
from jaxgpt.config.derive import derive
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.hardware import largest_fraction, usable_bytes
from jaxgpt.errors import InputError
from jaxgpt.plan.compiler import CompileCache
from jaxgpt.plan.estimate import estimate_run
from jaxgpt.plan.footprint import Footprint
from jaxgpt.plan.roofline import Bound, bound_step, peak_flops, step_flops
from jaxgpt.plan.timing import Timing, time_step
from jaxgpt.plan.topology import Topology


class Likely(NamedTuple):
    """The speed to expect.

    Attributes:
      tokens_per_s: over all devices.
      days: to the horizon.
      mfu: FLOPs of the model, causal, over the devices' peak in the config's dtype.
    """

    tokens_per_s: float
    days: float
    mfu: float


@dataclass(frozen=True)
class Forecast:
    """One config on one topology.

    Attributes:
      config: derived, with its mesh's axes filled in.
      footprint: of the stage that needs the most.
      is_estimate: from first principles; no compiler was asked.
      usable_bytes: of one device.
      most_usable_bytes: with the largest XLA_CLIENT_MEM_FRACTION.
      timing: of the stage with the largest batch, kernel by kernel; None without a compiled program.
      compile_s: all stages together.
    """

    config: Config
    topology: Topology
    footprint: Footprint
    is_estimate: bool
    usable_bytes: int
    most_usable_bytes: int
    bound: Bound
    timing: Timing | None
    compile_s: float

    @property
    def margin_bytes(self) -> int:
        """What is left of a device; negative: what is missing."""
        return self.usable_bytes - self.footprint.total_bytes

    @property
    def fits(self) -> bool:
        return self.margin_bytes >= 0 and not self.footprint.is_over

    @property
    def verdict(self) -> str:
        """In words, with the margin."""
        margin = abs(self.margin_bytes) / 2**30
        if self.fits:
            return f"fits, {margin:.1f} GiB to spare"
        if self.needs_fraction:
            return f"fits with XLA_CLIENT_MEM_FRACTION={self.needs_fraction}, without it {margin:.1f} GiB short"
        return f"does not fit, {margin:.1f} GiB short"

    @property
    def needs_fraction(self) -> float:
        """The XLA_CLIENT_MEM_FRACTION with which it fits; 0 where it fits as it is, or not at all."""
        is_within = self.footprint.total_bytes <= self.most_usable_bytes and not self.footprint.is_over
        return largest_fraction(self.topology.device) if is_within and not self.fits else 0.0

    @property
    def n_steps(self) -> int:
        return self.config.train.steps

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole run."""
        return schedule.tokens_before(self.config, self.n_steps)

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the model in the largest step, by the full convention; recomputation does not count."""
        return flops_per_token(self.config.largest_stage().model)

    @property
    def step_flops(self) -> float:
        """Executed in the largest step over all devices, recomputation included."""
        return step_flops(self.config, self.footprint.attention[0])

    @property
    def n_params(self) -> int:
        return self.config.model.count_params().total

    @property
    def tokens_per_s(self) -> float:
        """At best, over all devices."""
        return max(self.config.stage_batch_tokens()) / self.bound.step_s

    @property
    def days(self) -> float:
        """At best, to the horizon."""
        return self.n_tokens / self.tokens_per_s / 86_400

    @property
    def likely(self) -> Likely | None:
        """By the compiled kernels; None without a compiled program."""
        if self.timing is None:
            return None
        tokens_per_s = max(self.config.stage_batch_tokens()) / self.timing.step_s
        per_token = flops_per_token(self.config.largest_stage().model, causal=True)
        peak = peak_flops(self.config, self.topology) * self.topology.n_devices
        return Likely(tokens_per_s, self.n_tokens / tokens_per_s / 86_400, per_token * tokens_per_s / peak)

    def dollars(self, per_hour: float) -> float:
        """To the horizon, by the forecast where there is one, else at best, when one device costs `per_hour`."""
        days = self.likely.days if self.likely else self.days
        return days * 24 * per_hour * self.topology.n_devices


def place(config: Config, topology: Topology) -> Config:
    """The derived config with the axes of its mesh filled in for a topology.

    Raises:
      InputError: the axes do not multiply to the number of devices, or the batch does not divide.
    """
    mesh, count = config.mesh, topology.n_devices
    inner = mesh.fsdp * mesh.tensor
    data = mesh.data or max(count // inner, 1)
    if data * inner != count:
        raise InputError(
            f"mesh.data={data} x mesh.fsdp={mesh.fsdp} x mesh.tensor={mesh.tensor} = {data * inner} devices, but "
            f"--device={topology.name} has {count}; choose axes that multiply to {count}"
        )
    config = dataclasses.replace(config, mesh=dataclasses.replace(mesh, data=data))
    return derive(config).config


def look(config: Config, topology: Topology, cache: CompileCache | None, fraction: float | None = None) -> Forecast:
    """Asks the compiler, or counts where `cache` is None.

    Args:
      fraction: of a GPU's memory that JAX may take; None: as the environment says.

    Raises:
      InputError: the config cannot run on the topology.
      Failure: the compiler refused for another reason than memory.
    """
    config = place(config, topology)
    if cache:
        footprints = cache.footprints(config, topology)
    else:
        footprints = [estimate_run(config, topology.platform, topology.device_kind)]
    most = max(footprints, key=lambda one: one.total_bytes)
    largest = max(footprints, key=lambda one: (one.n_micro * one.seq_len, one.seq_len))
    attention = most.attention[0]
    bound = bound_step(
        config, topology, attention=attention, state_bytes=(most.params_bytes, most.opt_state_bytes),
        kept_bytes=kept_bytes(config.largest_stage(), attention), collectives=largest.collectives,
    )  # fmt: skip
    timing = time_step(largest.kernels, config.largest_stage(), topology) if largest.kernels else None
    device = topology.device
    return Forecast(
        config=config,
        topology=topology,
        footprint=most,
        is_estimate=cache is None,
        usable_bytes=usable_bytes(device, fraction),
        most_usable_bytes=usable_bytes(device, largest_fraction(device) if device.is_gpu else None),
        bound=bound,
        timing=timing,
        compile_s=math.fsum(one.compile_s for one in footprints),
    )
