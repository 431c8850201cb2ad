"""What the compiler says of a run's training step on devices that need not exist here: memory, kernels, collectives.

The step is the one that training runs (`make_step`), lowered and compiled for every kind of stage that the run has.
Nothing is executed, so the figures are the compiler's, not a measurement; XLA's own buffers are exact, what a driver
keeps beside them is in `hardware.usable_bytes`.

`answer` is the other side of `jaxgpt.plan.compiler`: a process that compiles once and reports.
"""

import functools
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jaxgpt import config as config_lib
from jaxgpt.config import Config
from jaxgpt.config.derive import derive
from jaxgpt.config.steps import Plan
from jaxgpt.errors import Failure, InputError
from jaxgpt.files import write_atomically
from jaxgpt.parallel.compiler_options import compiler_options, explain_option
from jaxgpt.parallel.mesh import count_batch_devices, make_mesh
from jaxgpt.plan.census import gathered_whole, summarize, take_census
from jaxgpt.plan.kernels import Kernel, list_kernels
from jaxgpt.plan.topology import open_devices, parse_topology
from jaxgpt.training.programs import lower_stage
from jaxgpt.training.step import Step, device_bytes, make_step


@dataclass(frozen=True)
class Footprint:
    """One compiled step, on each of its devices.

    Attributes:
      n_micro: microbatches of the step.
      seq_len: tokens of its rows.
      attention: implementation, and why.
      params_bytes, opt_state_bytes: the device's part of the state.
      inputs_bytes: the batch and the schedules' numbers.
      gradients_bytes: accumulators, as large as the parameters.
      activations_bytes: every other temporary: activations, logits, gathered weights, the optimizer's.
      code_bytes: the program, where it lives in the device's memory (TPU).
      collectives: rows of `census.summarize`; empty on one device.
      gathered_whole: parameters that every device holds whole in float32 at some time -> bytes.
      compile_s: seconds the compiler took.
      is_over: the compiler refused, because it did not fit; activations_bytes is what it said it needed.
      kernels: what one step runs; empty where is_over, and in an estimate.
    """

    n_micro: int
    seq_len: int
    attention: tuple[str, str]
    params_bytes: int
    opt_state_bytes: int
    inputs_bytes: int
    gradients_bytes: int
    activations_bytes: int
    code_bytes: int
    collectives: tuple[tuple[str, int, int, float], ...]
    gathered_whole: dict[str, int]
    compile_s: float
    is_over: bool = False
    kernels: tuple[Kernel, ...] = ()

    @property
    def total_bytes(self) -> int:
        """What must fit into the memory of one device at once."""
        parts = (
            self.params_bytes, self.opt_state_bytes, self.inputs_bytes, self.gradients_bytes, self.activations_bytes,
        )  # fmt: skip
        return sum(parts) + self.code_bytes

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Footprint":
        collectives = tuple(tuple(row) for row in values["collectives"])
        kernels = tuple(map(Kernel.from_json, values["kernels"]))
        attention = tuple(values["attention"])
        return Footprint(**{**values, "collectives": collectives, "attention": attention, "kernels": kernels})


def compile_run(config: Config, devices: list, remember=None) -> list[Footprint]:
    """One footprint for each kind of step that the stages of a run have, by rising number of microbatches.

    Args:
      remember: (options and text of a lowered program, function that gives its footprint) -> footprint; None: always
        compiles.

    Raises:
      InputError: the config cannot be built on these devices.
      Failure: the compiler refused, for another reason than memory.
    """
    config = derive(config).config
    mesh = make_mesh(config.mesh, devices)
    plan = Plan(config, count_batch_devices(mesh))
    kinds = {plan.first_alike(stage) for stage in range(len(plan.n_micro))}
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        found = []
        for stage in sorted(kinds, key=lambda stage: plan.n_micro[stage]):
            try:
                made, lowered = lower_stage(step, plan, stage)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                raise Failure(explain(error, step, config)) from error
            compile_it = functools.partial(
                compile_footprint, made, config.at_stage(stage), plan.n_micro[stage], lowered
            )
            text = json.dumps(compiler_options(config.train, mesh)) + lowered.as_text()
            found.append(remember(text, compile_it) if remember else compile_it())
        return found


def compile_footprint(step: Step, config: Config, n_micro: int, lowered) -> Footprint:
    """Compiles one step that `lower_train` traced. Call under `jax.set_mesh(step.mesh)`."""
    state = step.state_shapes
    params_bytes, opt_state_bytes = (
        sum(map(device_bytes, jax.tree.leaves(t))) for t in (state.params, state.opt_state)
    )
    common: dict[str, Any] = {
        "n_micro": n_micro, "seq_len": config.model.seq_len, "attention": step.attention, "params_bytes": params_bytes,
        "opt_state_bytes": opt_state_bytes, "gradients_bytes": params_bytes,
    }  # fmt: skip
    held = 2 * params_bytes + opt_state_bytes
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:
        needed = bytes_wanted(str(error))
        if needed is None:
            raise Failure(explain(error, step, config)) from error
        return Footprint(
            **common, inputs_bytes=0, activations_bytes=max(needed - held, 0), code_bytes=0, collectives=(),
            gathered_whole={}, compile_s=time.perf_counter() - begin, is_over=True,
        )  # fmt: skip
    compile_s = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    inputs_bytes = memory.argument_size_in_bytes - params_bytes - opt_state_bytes
    outputs_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    program = compiled.as_text()
    census = take_census(program, step.mesh.size) if step.mesh.size > 1 else []
    shapes = {path: leaf.shape for path, leaf in state.params.items()}
    return Footprint(
        **common,
        inputs_bytes=inputs_bytes + outputs_bytes,
        activations_bytes=memory.temp_size_in_bytes - params_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        collectives=tuple(summarize(census)),
        gathered_whole=gathered_whole(census, shapes) if step.mesh.shape["fsdp"] > 1 else {},
        compile_s=compile_s,
        kernels=list_kernels(program, step.mesh.size),
    )


def bytes_wanted(message: str) -> int | None:
    """What a compiler that ran out of memory says it needed; None when that was not the matter."""
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
    if not used:
        return None
    return int(float(used[1]) * 1024 ** (1 + "KMGT".index(used[2])))


def explain(error: Exception, step: Step, config: Config) -> str:
    """A compiler's refusal in the user's terms, on one line."""
    kind = step.mesh.devices.flat[0].device_kind
    text = str(error)
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)[:200]
    if step.attention[0] == "cudnn" and re.search(r"cudnn|fmha|flash|dot_product_attention", text, re.IGNORECASE):
        return (
            f"train.attention={step.attention[0]} has no kernel for head_dim={config.model.head_dim} and "
            f"train.dtype={config.train.dtype} on {kind} ({first}); --train.attention=xla runs there"
        )
    kernel = step.attention[0]
    if kernel in ("splash", "triton") and re.search(r"mosaic|pallas|splash|triton|shared memory", text, re.IGNORECASE):
        return (
            f"train.attention={kernel} does not compile for {kind} with train.matmul_precision="
            f"{config.train.matmul_precision} ({first}); --train.attention=xla runs there"
        )
    if re.search(r"RESOURCE_EXHAUSTED|out of memory", text, re.IGNORECASE):
        return f"the step does not fit into {kind} ({first}); lower train.micro_batch_size or set train.remat=block"
    if isinstance(error, InputError):
        return text
    if refused := explain_option(error):
        return str(refused)
    return f"the compiler for {kind} refused the step: {first}"


FORMAT = 2
"""Of a cached footprint; a field more is another format."""


def answer() -> None:
    """Reads {config, device, directory, versions} as JSON; writes footprints, or an error.

    In `directory` each footprint is cached under its program and the versions, so that a change of a comment, or of
    a setting that the program does not depend on, compiles nothing again. Empty: nothing is cached.
    """
    out = sys.stdout
    sys.stdout = sys.stderr
    request = json.load(sys.stdin)
    try:
        config = config_lib.from_dict(request["config"])
        jax.config.update("jax_enable_x64", config.train.dtype == "float64")
        topology = parse_topology(request["device"])
        about = json.dumps([topology.device.name, topology.shape, request["versions"], FORMAT])
        remember = functools.partial(_remember, request["directory"], about) if request["directory"] else None
        found = compile_run(config, open_devices(topology), remember)
        result = {"footprints": [one.to_json() for one in found]}
    except (InputError, Failure) as error:
        result = {"error": str(error), "is_input": isinstance(error, InputError)}
    json.dump(result, out)
    out.flush()


def _remember(directory: str, about: str, program: str, compile_it: Callable[[], Footprint]) -> Footprint:
    path = Path(directory) / f"program-{hashlib.sha256((about + program).encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return Footprint.from_json(json.loads(path.read_text(encoding="utf-8")))
    footprint = compile_it()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(footprint.to_json()))
    return footprint
