"""jaxgpt against torch_ref, number by number: the same weights, the same batches, one table of what differs.

    python -m parity_tests.compare --config configs/x.py --steps 200 --dtype float64 [--section.field=value ...]
    python -m parity_tests.compare --runs A B
    python -m parity_tests.compare --report docs/parity.md

The first runs both on this machine, from the weights that jaxgpt draws, on the batches of the config's data, without
dropout and with attention spelled out; the schedule is the config's, of which the first steps are taken. --trace also
walks forward and backward pass and names the first place where the two part. --runs compares two finished runs by
their metrics.jsonl. --report measures the floors and the mutations anew and writes them down.

Precision is set on purpose on both sides: where float32 products may run as TF32, the tool refuses to judge. On a GPU
set XLA_FLAGS=--xla_gpu_deterministic_ops=true too, so that XLA's figures are the same in the next process.

Exit codes: 0 inside all gates, 1 outside of one, 2 bad input. The gates, with reasons, are in tolerances.py.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxgpt import config as config_lib
from jaxgpt import schedule
from jaxgpt import step as jax_step
from jaxgpt.command_line import parse_args
from jaxgpt.config import Config, HostsConfig, MeshConfig, count_microbatches
from jaxgpt.data.batches import Batches
from jaxgpt.data.shards import open_dataset
from jaxgpt.errors import InputError, run_verb
from jaxgpt.log import console, read_metrics
from jaxgpt.loss import cross_entropy as jax_cross_entropy
from jaxgpt.sealed import Damaged, read_seal
from jaxgpt.sharding import make_mesh as make_jax_mesh
from jaxgpt.train import choose_vocab_size, initial_params
from parity_tests.tolerances import PARITY, Gate

DTYPES = ("float64", "float32", "bfloat16")
Arrays = dict[str, np.ndarray]


# What a run leaves behind


@dataclass(frozen=True)
class Trajectory:
    """One framework's numbers. Arrays are by path, in jaxgpt's layout ([in, out]).

    Attributes:
      logits: of the first microbatch, before the first step.
      grads: of the mean loss of the first batch, before clipping.
      losses, grad_norms: of every step.
      first, last: parameters after the first and after the last step.
      opt_state: leaves of the optimizer's state after the last step.
      places: with is_traced, forward and backward pass of the first microbatch, in the order in which they are made.
    """

    name: str
    logits: np.ndarray
    grads: Arrays
    losses: list[float]
    grad_norms: list[float]
    first: Arrays
    last: Arrays
    opt_state: Arrays
    places: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One compared quantity. `limit` None: reported, not judged."""

    quantity: str
    worst: str
    figure: float
    floor: float
    limit: float | None

    @property
    def is_inside(self) -> bool:
        return self.limit is None or self.figure <= self.limit  # NaN is outside

    @property
    def margin(self) -> float:
        """How many times the gate's limit the figure is."""
        return self.figure / self.limit if self.limit else 0.0


def settle(config: Config, n_steps: int, dtype: str) -> Config:
    """The config as both frameworks run it to be compared: one device, attention spelled out, no dropout.

    Muon's iteration is in float64 where everything else is; the config's dtype for it stays otherwise.
    """
    muon = dataclasses.replace(config.optim.muon, **({"ns_dtype": dtype} if dtype == "float64" else {}))
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, muon=muon),
        model=dataclasses.replace(config.model, dropout=0.0),
        train=dataclasses.replace(
            config.train, steps=max(config.train.steps, n_steps), dtype=dtype, attention="xla"
        ),
        mesh=MeshConfig(data=1, platform=choose_platform(config.mesh.platform)),
        hosts=HostsConfig(),
    )  # fmt: skip


def choose_platform(wanted: str) -> Literal["cpu", "gpu"]:
    """gpu where both frameworks see one, else cpu. Raises InputError where one that is asked for is not there."""
    torch = import_torch()
    seen = {"jax": jax.default_backend() == "gpu", "torch": torch.cuda.is_available()}
    if wanted not in ("", "cpu") and not (wanted == "gpu" and all(seen.values())):
        blind = ", ".join(name for name, is_there in seen.items() if not is_there) or "torch"
        raise InputError(f"mesh.platform={wanted} is not here for {blind}; drop it to compare on the CPU")
    return "gpu" if all(seen.values()) and wanted != "cpu" else "cpu"


def import_torch() -> Any:
    """The module torch. Raises InputError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise InputError("this needs PyTorch; pip install 'jaxgpt[torch]'") from error
    return torch


def refuse_tf32(config: Config) -> None:
    """Raises InputError where a product of float32 may be less than float32 on either side."""
    torch = import_torch()
    precision = config.train.matmul_precision
    if precision != "highest":
        raise InputError(
            f"train.matmul_precision={precision} allows TF32, whose errors hide bugs; "
            "compare with --train.matmul_precision=highest"
        )
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "") == "1":
        raise InputError("NVIDIA_TF32_OVERRIDE=1 turns float32 products into TF32 on both sides; unset it to compare")
    if torch.backends.cuda.matmul.allow_tf32:
        raise InputError("torch.backends.cuda.matmul.allow_tf32=True allows TF32; set it to False to compare")


def read_batches(config: Config, n_steps: int) -> tuple[int, list[np.ndarray]]:
    """The vocabulary of the config's data, and the batches [M, B, T + 1] of its first steps."""
    data = open_dataset(config.data.dir)
    vocab_size = choose_vocab_size(config, data)
    seq_len, n_rows = config.model.seq_len, config.train.micro_batch_size
    batches = Batches(data.train, seq_len, config.run.seed, config.data.sampling, vocab_size)
    found = []
    for step in range(n_steps):
        n_tokens = schedule.batch_tokens_at(config, step)
        n_micro = count_microbatches(config, n_tokens, 1)
        n_all, n_before = n_tokens // seq_len, schedule.tokens_before(config, step) // seq_len
        rows = batches.rows(step, n_before, n_all, 0, n_all)
        found.append(rows.reshape(n_micro, n_rows, seq_len + 1))
    return vocab_size, found


def draw_params(config: Config, vocab_size: int) -> Arrays:
    """The weights that jaxgpt starts this run with."""
    mesh = make_jax_mesh(config.mesh)
    with jax.enable_x64(config.train.dtype == "float64"), jax.set_mesh(mesh):
        step = jax_step.make_step(config, vocab_size, mesh)
        return {path: np.asarray(leaf) for path, leaf in initial_params(config, step, vocab_size).items()}


# The two sides


def run_jax(
    config: Config,
    vocab_size: int,
    params: Arrays,
    batches: Sequence[np.ndarray],
    *,
    is_traced: bool = False,
    known: Trajectory | None = None,
) -> Trajectory:
    """jaxgpt's training steps on these batches, on the devices of config.mesh.

    Args:
      known: a run whose logits and first gradients are this one's too, which saves compiling them.
    """
    mesh = make_jax_mesh(config.mesh)
    with (
        jax.enable_x64(config.train.dtype == "float64"),
        jax.default_matmul_precision("highest"),
        jax.set_mesh(mesh),
    ):
        step = jax_step.make_step(config, vocab_size, mesh)
        shapes = step.state_shapes.params
        placed = {path: jax.device_put(params[path], shape.sharding) for path, shape in shapes.items()}
        logits, grads = (known.logits, known.grads) if known else _jax_first_batch(config, step, placed, batches[0])
        places = _jax_places(config, step, placed, batches[0][0]) if is_traced else {}
        state, losses, norms, first = step.init_state(placed), [], [], {}
        for i, batch in enumerate(batches):
            state, metrics = step.train(state, batch, step.hyper(schedule.hyper_at(config, i)))
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
            if i == 0:
                first = to_arrays(state.params)
        opt_state = to_arrays(state.opt_state)
        return Trajectory("jaxgpt", logits, grads, losses, norms, first, to_arrays(state.params), opt_state, places)


def to_arrays(tree: Any) -> Arrays:
    """A jaxgpt tree as path -> numpy, by the names that its checkpoints use."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf) for path, leaf in leaves}


def _jax_first_batch(config: Config, step: jax_step.Step, params, batch_MBT) -> tuple[np.ndarray, Arrays]:
    """Logits of the first microbatch, and gradients of the mean loss over all."""
    run = jax.jit(lambda params, batch_BT: _jax_first_pass(config, step, params, batch_BT))
    passes = [run(params, batch_BT) for batch_BT in batch_MBT]
    grads = {path: sum(np.asarray(grads[path]) for _, grads in passes) for path in params}
    return np.asarray(passes[0][0]), {path: grad / batch_MBT[..., 1:].size for path, grad in grads.items()}


def _jax_first_pass(config: Config, step: jax_step.Step, params, batch_BT):
    """Logits, and gradients of the summed loss."""
    module = step.model.bind(params)
    dtype = jnp.dtype(config.train.dtype)
    logits_BTV = module.logits(module(batch_BT[:, :-1], dtype=dtype, implementation=step.attention[0]))
    loss = lambda params: jax_step.loss_sum(config, step.model, step.attention[0], params, batch_BT)[0]  # noqa: E731
    return logits_BTV, jax.grad(loss)(params)


def _jax_places(config: Config, step: jax_step.Step, params, batch_BT) -> Arrays:
    """Zeros are added at each place, so that the gradient with respect to them is that place's."""

    def forward(params, zeros):
        values = {}

        def tap(name, x):
            values[name] = x if zeros is None else x + zeros[name]
            return values[name]

        module = step.model.bind(params)
        x_BTD = walk(module, batch_BT[:, :-1], jnp.dtype(config.train.dtype), step.attention[0], tap)
        values["logits"] = module.logits(x_BTD)
        nats, n_tokens = jax_cross_entropy(x_BTD, module.head_weight(), batch_BT[:, 1:])
        return nats / n_tokens, values

    def both(params, zeros):
        grads, values = jax.grad(lambda *args: forward(*args), argnums=(0, 1), has_aux=True)(params, zeros)
        return values, *grads

    shapes = jax.eval_shape(lambda params: forward(params, None)[1], params)
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items() if name != "logits"}
    values, param_grads, place_grads = jax.jit(both)(params, zeros)
    return _in_order(*(to_arrays(tree) for tree in (values, param_grads, place_grads)))


def run_torch(
    config: Config, vocab_size: int, params: Arrays, batches: Sequence[np.ndarray], *, is_traced: bool = False
) -> Trajectory:
    """torch_ref's, from the same weights.

    Raises:
      InputError: torch is not installed or allows TF32, or the weights are another model's.
    """
    torch = import_torch()
    from torch_ref import sharding, weights
    from torch_ref import step as torch_step

    mesh = sharding.make_mesh(config.mesh)
    step = torch_step.make_step(config, vocab_size, mesh)
    refuse_tf32(config)
    state = step.init_state(weights.to_torch(params))
    batch_MBT = sharding.to_device(batches[0], mesh)
    with torch.no_grad():
        module = step.model.bind(state.params)
        dtype = getattr(torch, config.train.dtype)
        logits_BTV = module.logits(module(batch_MBT[0, :, :-1], dtype=dtype, implementation=step.attention[0]))
    for batch_BT in batch_MBT:
        torch_step.loss_sum(config, step.model, step.attention[0], state.params, batch_BT)[0].backward()
    n_tokens = batches[0][..., 1:].size
    grads = {path: torch_step.take_grad(param) / n_tokens for path, param in state.params.items()}
    places = _torch_places(config, step, state.params, batch_MBT[0]) if is_traced else {}
    losses, norms, first = [], [], {}
    for i, batch in enumerate(batches):
        hyper = step.hyper(schedule.hyper_at(config, i))
        state, metrics = step.train(state, sharding.to_device(batch, mesh), hyper)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        if i == 0:
            first = weights.to_numpy(state.params)
    opt_state = weights.to_numpy(weights.by_path(state.opt_state, "opt_state"))
    opt_state = {path.removeprefix("opt_state."): leaf for path, leaf in opt_state.items()}
    return Trajectory(
        "torch_ref", _numpy(logits_BTV), weights.to_numpy(grads), losses, norms, first,
        weights.to_numpy(state.params), opt_state, places,
    )  # fmt: skip


def _torch_places(config: Config, step: Any, params, batch_BT) -> Arrays:
    torch = import_torch()
    from torch_ref.loss import cross_entropy
    from torch_ref.step import take_grad
    from torch_ref.weights import to_numpy

    values = {}

    def tap(name, x):
        x.retain_grad()
        values[name] = x
        return x

    module = step.model.bind(params)
    dtype = getattr(torch, config.train.dtype)
    x_BTD = walk(module, batch_BT[:, :-1], dtype, step.attention[0], tap)
    nats, n_tokens = cross_entropy(x_BTD, module.head_weight(), batch_BT[:, 1:])
    (nats / n_tokens).backward()
    place_grads = {name: _numpy(x.grad) for name, x in values.items()}
    values["logits"] = module.logits(x_BTD)
    param_grads = to_numpy({path: take_grad(param) for path, param in params.items()})
    return _in_order({name: _numpy(x) for name, x in values.items()}, param_grads, place_grads)


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def walk(module: Any, tokens_BT, dtype, implementation: str, tap: Callable[[str, Any], Any]):
    """A model's forward pass, either framework's, layer by layer: tap(name, value) -> value sees each output."""
    x_BTD = tap("embedding", module.embed(tokens_BT, 0, dtype))
    for i, block in enumerate(module.h):
        y_BTD = tap(f"h.{i}.ln_1", block.ln_1(x_BTD))
        x_BTD = x_BTD + tap(f"h.{i}.attn", block.attn(y_BTD, implementation=implementation)[0])
        y_BTD = tap(f"h.{i}.ln_2", block.ln_2(x_BTD))
        x_BTD = tap(f"h.{i}", x_BTD + tap(f"h.{i}.mlp", block.mlp(y_BTD)))
    return tap("ln_f", module.ln_f(x_BTD))


def _in_order(values: Arrays, param_grads: Arrays, place_grads: Arrays) -> Arrays:
    """Forward from the embedding to the logits, backward from the last layer to the first.

    Behind the gradient of a layer's output come those of its own parameters, last ones first.
    """
    n_layer = sum(bool(re.fullmatch(r"h\.\d+", name)) for name in place_grads)
    parts = ("ln_1", "attn", "ln_2", "mlp")
    layers = [f"h.{i}.{part}" for i in range(n_layer) for part in parts]
    ahead = ["embedding"]
    for layer in layers:
        ahead += [layer, layer.removesuffix(".mlp")] if layer.endswith(".mlp") else [layer]
    ahead += ["ln_f"]
    places = {f"forward: {name}": values[name] for name in [*ahead, "logits"]}
    for name in reversed(ahead):
        places[f"backward: output of {name}"] = place_grads[name]
        prefixes = ("wte.", "wpe.") if name == "embedding" else (f"{name}.",) * (name in layers or name == "ln_f")
        own = [path for path in param_grads if prefixes and path.startswith(prefixes)]
        places |= {f"backward: {path}": param_grads[path] for path in sorted(own, reverse=True)}
    return places


# Comparing


def compare(ours: Trajectory, theirs: Trajectory, gates: dict[str, Gate]) -> list[Row]:
    """One row per quantity, `theirs` being the reference.

    Raises:
      InputError: the two are of different models or of different lengths.
    """
    refuse_other_run(ours, theirs)
    n = len(theirs.losses)
    loss = np.abs(np.subtract(ours.losses, theirs.losses))
    norm = np.abs(np.divide(ours.grad_norms, theirs.grad_norms) - 1)
    figures = {
        "logits": ("step 1", np.max(np.abs(ours.logits - theirs.logits))),
        "loss, max": (f"step {np.argmax(loss) + 1}", np.max(loss)),
        "loss, mean": (f"{n} steps", np.mean(loss)),
        "gradient norm": (f"step {np.argmax(norm) + 1}", np.max(norm)),
        "gradients, step 1": find_worst(ours.grads, theirs.grads),
        "parameters, step 1": find_worst(ours.first, theirs.first),
        "parameters, last step": find_worst(ours.last, theirs.last),
        "optimizer state": find_worst(ours.opt_state, theirs.opt_state),
        "key biases, gradients": find_worst_key_bias(ours.grads, theirs.grads, theirs.grads),
        "key biases, last step": find_worst_key_bias(ours.last, theirs.last, theirs.last),
    }
    return [
        Row(name.replace("last step", f"step {n}"), worst, float(figure), gates[name].floor, gates[name].limit)
        for name, (worst, figure) in figures.items()
        if worst
    ]  # fmt: skip


def refuse_other_run(ours: Trajectory, theirs: Trajectory) -> None:
    a, b = ({path: leaf.shape for path, leaf in side.last.items()} for side in (ours, theirs))
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            raise InputError(f"two models: {path} is {a.get(path)} in {ours.name}, {b.get(path)} in {theirs.name}")
    if len(ours.losses) != len(theirs.losses):
        raise InputError(f"two lengths: {ours.name} took {len(ours.losses)} steps, {theirs.name} {len(theirs.losses)}")


def key_part(path: str, array: np.ndarray) -> slice | None:
    """Which part of this tensor is the key bias, whose true gradient is 0: softmax does not see it."""
    if not path.endswith("attn.c_attn.bias"):
        return None
    width = array.shape[0] // 3
    return slice(width, 2 * width)


def relative_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """L2 norm of the difference, relative to theirs; absolute where theirs is 0."""
    a, b = (np.asarray(array, np.float64) for array in (ours, theirs))
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / (size if size > 0 else 1.0))


def _distance(path: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    part = key_part(path, theirs)
    if part is not None:
        ours, theirs = (np.delete(array, part) for array in (ours, theirs))
    return relative_distance(ours, theirs)


def find_worst(ours: Arrays, theirs: Arrays) -> tuple[str, float]:
    """The tensor that differs most, and by how much, key biases left out. NaN counts as most."""
    distances = {path: _distance(path, ours[path], theirs[path]) for path in theirs}
    worst = max(distances, key=lambda path: np.nan_to_num(distances[path], nan=np.inf))
    return worst, distances[worst]


def find_worst_key_bias(ours: Arrays, theirs: Arrays, scale: Arrays) -> tuple[str, float]:
    """As `find_worst` for the key biases alone, relative to the tensor they are a part of. ("", 0) without any."""
    worst = ("", 0.0)
    for path, b in theirs.items():
        part = key_part(path, b)
        if part is not None:
            size = np.linalg.norm(np.asarray(scale[path], np.float64))
            distance = float(np.linalg.norm(np.asarray(ours[path] - b, np.float64)[part]) / (size or 1.0))
            worst = max(worst, (path, distance), key=lambda pair: pair[1])
    return worst


def trace(ours: Trajectory, theirs: Trajectory, gates: dict[str, Gate]) -> str:
    """The first place where two traced runs part, by how much; or "no difference".

    Layers first, forward and backward; then what only the whole has: gradients of the model's own call, the update
    of the first step, the losses.
    """
    refuse_other_run(ours, theirs)
    names = [name.removeprefix("backward: ") for name in theirs.places if name.startswith("backward: ")]
    paths = [name for name in names if name in theirs.grads]
    found: list[tuple[str, Callable[[], float], float | None]] = []
    for name in theirs.places:
        limit = gates["trace, " + name.partition(":")[0]].limit
        path = name.removeprefix("backward: ")
        found.append((name, lambda n=name, p=path: _distance(p, ours.places[n], theirs.places[n]), limit))
    for what, a, b, quantity in (
        ("gradient of the whole model", ours.grads, theirs.grads, "gradients, step 1"),
        ("update of step 1", ours.first, theirs.first, "parameters, step 1"),
    ):
        for path in paths:
            found.append((f"{what}: {path}", lambda a=a, b=b, p=path: _distance(p, a[p], b[p]), gates[quantity].limit))
    for i, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        found.append((f"loss of step {i + 1}", lambda a=a, b=b: abs(a - b), gates["loss, max"].limit))
    for name, measure, limit in found:
        distance = measure()
        if limit is not None and not distance <= limit:
            return f"{name} ({distance:.1e}, gate {limit:.0e})"
    return "no difference"


def compare_runs(ours: Path, theirs: Path, dtype: str) -> tuple[list[Row], dict[str, list]]:
    """Rows for two run directories, and their curves: steps, and each one's losses.

    Raises:
      InputError: no metrics, no step in common, or the runs are of different configs.
    """
    refuse_other_config(ours, theirs)
    records = []
    for run in (ours, theirs):
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise InputError(f"--runs: {path} is not there; give two run directories")
        try:
            records.append({record["step"]: record for record in read_metrics(path)})
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"--runs: {path} holds no records of a run") from error
    a, b = records
    gates = PARITY[dtype]
    rows, curves = [], {}
    for name in ("train_loss", "val_loss"):
        steps = [s for s in sorted(a.keys() & b.keys()) if a[s].get(name) is not None and b[s].get(name) is not None]
        if name == "train_loss" and not steps:
            raise InputError(
                f"--runs: {ours} and {theirs} have no logged step in common; log both with one --log.every"
            )
        if not steps:
            continue
        pair = [[records[step][name] for step in steps] for records in (a, b)]
        difference = np.abs(np.subtract(pair[0], pair[1]))
        worst = f"step {steps[int(np.argmax(difference))]}"
        for measure, at, figure in (
            ("max", worst, np.max(difference)),
            ("mean", f"{len(steps)} steps", np.mean(difference)),
        ):
            gate = gates[f"loss, {measure}"]
            rows.append(Row(f"{name}, {measure}", at, float(figure), gate.floor, gate.limit))
        if name == "train_loss":
            curves = {"steps": steps, "ours": pair[0], "theirs": pair[1]}
    return rows, curves


def read_config(run: Path) -> dict | None:
    """What the newest checkpoint says that the run was; None without one. Runs no code."""
    steps = [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        try:
            return read_seal(run / "checkpoints" / str(step))["about"]["config"]
        except (Damaged, KeyError, TypeError):
            continue
    return None


FREE = (
    r"run\.dir|hosts\..*|mesh\..*|log\..*|checkpoint\..*|sample\..*|eval\..*|data\.dir|train\.("
    "steps|micro_batch_size|dtype|matmul_precision|attention|remat|loss_chunk_tokens|init_from|max_skips)"
)  # fmt: skip
"""Settings in which two runs that are compared may differ: they change nothing but rounding."""


def refuse_other_config(ours: Path, theirs: Path) -> None:
    configs = [read_config(run) for run in (ours, theirs)]
    if configs[0] is None or configs[1] is None:
        return
    a, b = (config_lib.flatten(config) for config in configs)
    differing = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    differing = [f"{name} {a.get(name)!r} and {b.get(name)!r}" for name in differing if not re.fullmatch(FREE, name)]
    if differing:
        raise InputError(f"--runs: {ours} and {theirs} are not the same run: {'; '.join(differing)}")


# Showing


def print_rows(rows: Iterable[Row], title: str) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("quantity", no_wrap=True)
    table.add_column("worst", overflow="fold")
    for name in ("figure", "floor", "gate"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        verdict = "-" if row.limit is None else "inside" if row.is_inside else f"[red]outside, {row.margin:.1e} x"
        limit = "-" if row.limit is None else f"{row.limit:.1e}"
        table.add_row(row.quantity, row.worst, f"{row.figure:.1e}", f"{row.floor:.1e}", limit, verdict)
    console.print(table)


def draw_curves(steps: list[int], ours: list[float], theirs: list[float], names: tuple[str, str], path: Path) -> None:
    """Both losses above, their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, figsize=(8, 6), sharex=True, layout="constrained")
    above.plot(steps, theirs, linewidth=1.6, label=names[1])
    above.plot(steps, ours, linewidth=0.8, linestyle="--", label=names[0])
    above.set(ylabel="loss (nats per token)")
    above.legend()
    difference = np.abs(np.subtract(ours, theirs))
    below.plot(steps, np.where(difference > 0, difference, np.nan), marker=".", markersize=2, linewidth=0.6)
    if difference.any():
        below.set_yscale("log")
    below.set(xlabel="step", ylabel="difference")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def to_json(rows: Iterable[Row], **more: Any) -> dict:
    """What the table says, and whatever else is given, as JSON holds it."""
    table = [dataclasses.asdict(row) | {"is_inside": row.is_inside} for row in rows]
    return {"rows": table, "is_inside": all(row["is_inside"] for row in table), **more}


def describe_machine(config: Config | None = None) -> dict[str, str]:
    """Versions and devices that the figures were made with."""
    import platform

    torch = import_torch()
    is_gpu = config is not None and config.mesh.platform == "gpu"
    device = torch.cuda.get_device_name() if is_gpu else f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    return {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version(), "device": device}


# The command


def read_arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The tool's own arguments, and the rest, which are a config's."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; --help lists the arguments")

    parser = Parser("python -m parity_tests.compare", add_help=False, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--runs", nargs=2, type=Path, metavar=("A", "B"))
    parser.add_argument("--report", type=Path)
    given, rest = parser.parse_known_args(args)
    if given.steps < 1:
        raise InputError(f"--steps={given.steps} is below 1; choose a positive number")
    return given, rest


def main(args: list[str]) -> int:
    given, rest = read_arguments(args)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX leaves no memory of a GPU to torch
    if given.report:
        from parity_tests.mutations import write_report

        return write_report(given.report)
    if given.runs:
        return judge_runs(given, rest)
    config, _ = parse_args(rest, {}, __doc__ or "")
    dtype = given.dtype or config.train.dtype
    if dtype not in DTYPES:
        raise InputError(f"train.dtype={dtype} has no gates; choose --dtype from {', '.join(DTYPES)}")
    refuse_tf32(config)
    config = settle(config, given.steps, dtype)
    vocab_size, batches = read_batches(config, given.steps)
    params = draw_params(config, vocab_size)
    ours = run_jax(config, vocab_size, params, batches, is_traced=given.trace)
    theirs = run_torch(config, vocab_size, params, batches, is_traced=given.trace)
    rows = compare(ours, theirs, PARITY[dtype])
    machine = describe_machine(config)
    print_rows(
        rows, f"{Path(config.run.dir).name}, {given.steps} steps, {dtype}: jaxgpt and torch_ref ({machine['device']})"
    )
    more: dict[str, Any] = {"config": config_lib.to_dict(config), "dtype": dtype, "machine": machine}
    if given.trace:
        more["trace"] = trace(ours, theirs, PARITY[dtype])
        console.print(f"first difference: {more['trace']}")
    curves = {"steps": list(range(1, given.steps + 1)), "ours": ours.losses, "theirs": theirs.losses}
    out = given.out or Path("runs") / f"parity-{Path(config.run.dir).name}-{dtype}"
    return conclude(rows, curves, ("jaxgpt", "torch_ref"), out, given.json, more)


def judge_runs(given: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise InputError(f"{rest[0]} has no meaning beside --runs, which trains nothing; drop it")
    if given.trace:
        raise InputError("--trace needs both models at work; give --config instead of --runs")
    ours, theirs = given.runs
    dtypes = {(read_config(run) or {}).get("train", {}).get("dtype") for run in given.runs} - {None}
    dtype = given.dtype or next((name for name in reversed(DTYPES) if name in dtypes), None)  # the coarsest
    if dtype is None:
        raise InputError(f"--dtype is missing, and {ours} has no checkpoint that names it; it chooses the gate")
    rows, curves = compare_runs(ours, theirs, dtype)
    print_rows(rows, f"{ours} and {theirs}, {len(curves['steps'])} common steps, gates of {dtype}")
    out = given.out or Path("runs") / f"parity-{ours.resolve().name}-{theirs.resolve().name}"
    return conclude(rows, curves, (str(ours), str(theirs)), out, given.json, {"runs": [str(ours), str(theirs)]})


def conclude(
    rows: list[Row], curves: dict, names: tuple[str, str], out: Path, json_path: Path | None, more: dict
) -> int:
    """Writes JSON and PNG; the exit code."""
    json_path = json_path or out / "parity.json"
    try:
        for directory in (out, json_path.parent):
            directory.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(to_json(rows, curves=curves, **more), indent=1) + "\n", encoding="utf-8")
        draw_curves(curves["steps"], curves["ours"], curves["theirs"], names, out / "parity.png")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another --out") from error
    outside = [row.quantity for row in rows if not row.is_inside]
    console.print(
        f"{'outside: ' + ', '.join(outside) if outside else 'inside all gates'}; {json_path}, {out}/parity.png"
    )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.modules.setdefault("parity_tests.compare", sys.modules["__main__"])
    run_verb(main)
