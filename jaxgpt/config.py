"""The settings of a run: frozen dataclasses, one value per file in `configs/`, overrides by dotted name.

A config file is Python and ends with one value named `config`. It is code that you run, like any script of
yours; what is read back from checkpoints is JSON (`to_dict`, `from_dict`) and runs nothing.

Checks within a section stand in its `__post_init__`, checks across sections in that of `Config`.
"""

import dataclasses
import json
import pprint
import re
import runpy
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxgpt.errors import InputError


def _require(is_good: bool, message: str) -> None:
    if not is_good:
        raise InputError(message)


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives and what makes it reproducible."""

    dir: str = ""
    """Directory of the run; empty: runs/<name of the config file>."""
    seed: int = 1337
    """Seed of the weights, the batches and dropout. Two runs with one config and seed are the same run."""

    def __post_init__(self):
        _require(0 <= self.seed < 2**32, f"run.seed={self.seed} is outside [0, 2**32); choose one inside")


@dataclass(frozen=True)
class GPT2Config:
    """GPT-2 as nanoGPT trains it: learned positions, LayerNorm before each sublayer, tied head."""

    family: Literal["gpt2"] = "gpt2"
    """Model family."""
    vocab_size: int = 0
    """Rows of the embedding; 0: as many as the data's tokenizer has. 50304 pads GPT-2's 50257 to 64."""
    seq_len: int = 1024
    """Context length in tokens: positions the model has, and the length of a training row."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Attention heads per block."""
    n_embd: int = 768
    """Width of the residual stream."""
    bias: bool = False
    """Biases in linear layers and norms, as in OpenAI's weights. False is a little faster and better."""
    dropout: float = 0.0
    """Dropout on embeddings, attention probabilities and both outputs of a block. 0 for pretraining."""
    gelu: Literal["erf", "tanh"] = "erf"
    """erf: nanoGPT. tanh: the approximation that OpenAI's and Hugging Face's GPT-2 weights expect."""

    def __post_init__(self):
        for name in ("seq_len", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            _require(value >= 1, f"model.{name}={value} is below 1; choose a positive number")
        _require(self.vocab_size >= 0, f"model.vocab_size={self.vocab_size} is negative; 0 takes the tokenizer's")
        _require(0 <= self.dropout < 1, f"model.dropout={self.dropout} is outside [0, 1); 0 turns it off")
        lower = self.n_embd // self.n_head * self.n_head
        _require(
            self.n_embd % self.n_head == 0,
            f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head}; "
            f"nearest widths: {lower or self.n_head}, {lower + self.n_head}",
        )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class DataConfig:
    """The tokens: a directory that `python -m jaxgpt.prepare` wrote, or one in nanoGPT's or llm.c's format."""

    dir: str = "data/openwebtext"
    """Directory with the train and val shards."""
    sampling: Literal["random", "sequential"] = "random"
    """random: rows start anywhere (nanoGPT). sequential: the shards from front to back, again after the end."""


@dataclass(frozen=True)
class StageConfig:
    """A part of the run that differs from what comes before it."""

    from_step: int
    """First step of the stage; it lasts until the next stage begins."""
    batch_tokens: int = 0
    """Tokens per optimizer step in this stage; 0: train.batch_tokens."""
    lr_scale: float = 1.0
    """Factor on every learning rate in this stage, on top of the schedule."""

    def __post_init__(self):
        _require(self.from_step >= 1, f"train.stages: from_step={self.from_step} is below 1; stage 0 is the config")
        _require(self.batch_tokens >= 0, f"train.stages: batch_tokens={self.batch_tokens} is negative")
        _require(self.lr_scale >= 0, f"train.stages: lr_scale={self.lr_scale} is negative")


@dataclass(frozen=True)
class TrainConfig:
    """The training step and how often it is taken."""

    steps: int = 600_000
    """Optimizer steps of the whole run."""
    batch_tokens: int = 491_520
    """Tokens per optimizer step, over all devices and microbatches."""
    micro_batch_size: int = 12
    """Rows per device in one forward-backward pass; as many as fit. Accumulation follows from batch_tokens."""
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"
    """Dtype of the computation. Parameters and optimizer state stay float32 (float64 keeps them float64)."""
    matmul_precision: Literal["highest", "high", "default"] = "highest"
    """For float32: highest is true float32; high and default allow TF32 on a GPU, bfloat16 passes on a TPU."""
    attention: Literal["auto", "cudnn", "splash", "xla"] = "auto"
    """auto: flash attention (cudnn on GPU, splash on TPU) where the run permits it, else xla, and says which."""
    remat: Literal["none", "dots", "block"] = "none"
    """Activation checkpointing: keep everything, keep matmul outputs, or keep only the input of each block."""
    loss_chunk_tokens: int = 8192
    """Tokens per device whose logits exist at one time."""
    init_from: str = ""
    """Weights to start from: gpt2, gpt2-medium, gpt2-large, gpt2-xl, a Hugging Face directory, or a nanoGPT ckpt.pt."""
    max_skips: int = 5
    """Non-finite steps in a row (each is skipped, nothing of it is applied) after which the run gives up."""
    stages: tuple[StageConfig, ...] = ()
    """Later parts of the run with another batch or learning rate."""

    def __post_init__(self):
        for name in ("steps", "batch_tokens", "micro_batch_size", "loss_chunk_tokens", "max_skips"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name}={value} is below 1; choose a positive number")
        starts = [stage.from_step for stage in self.stages]
        _require(starts == sorted(set(starts)), f"train.stages start at {starts}; list them in rising order")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run, as a factor on every group's peak."""

    kind: Literal["cosine", "constant", "trapezoid"] = "cosine"
    """cosine: nanoGPT. constant. trapezoid: flat, then linear down over the last warmdown_frac of the run."""
    warmup_steps: int = 0
    """Linear warm-up: step n of them has (n + 1) / (warmup_steps + 1) of the peak."""
    decay_steps: int = 0
    """Step at which the decay ends; 0: train.steps."""
    min_lr_frac: float = 0.1
    """Learning rate at the end of the decay, as a fraction of the peak."""
    warmdown_frac: float = 0.2
    """trapezoid: part of the run that the descent takes."""

    def __post_init__(self):
        for name in ("warmup_steps", "decay_steps"):
            value = getattr(self, name)
            _require(value >= 0, f"optim.schedule.{name}={value} is negative; 0 turns it off")
        for name in ("min_lr_frac", "warmdown_frac"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"optim.schedule.{name}={value} is outside [0, 1]")


@dataclass(frozen=True)
class MuonConfig:
    """Muon (Keller Jordan, 2024): momentum, orthogonalised by a Newton-Schulz iteration."""

    lr: float = 0.02
    """Peak learning rate of the matrices."""
    momentum: float = 0.95
    """Momentum."""
    momentum_start: float = 0.85
    """Momentum at step 0."""
    momentum_warmup_steps: int = 0
    """Steps over which momentum rises from momentum_start to momentum; 0: constant."""
    nesterov: bool = True
    """Nesterov momentum."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    ns_dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    """Dtype of the iteration. bfloat16 is the originals' choice and fast on a GPU; slow on a CPU."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices."""

    def __post_init__(self):
        _require(self.lr >= 0, f"optim.muon.lr={self.lr} is negative")
        _require(self.ns_steps >= 1, f"optim.muon.ns_steps={self.ns_steps} is below 1")
        _require(self.weight_decay >= 0, f"optim.muon.weight_decay={self.weight_decay} is negative")
        for name in ("momentum", "momentum_start"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.muon.{name}={value} is outside [0, 1)")


@dataclass(frozen=True)
class GroupConfig:
    """Settings for the parameters whose path matches; what is None stays as it is for the others."""

    match: str
    """Regular expression, searched in paths such as wte.weight or h.0.attn.c_proj.weight."""
    algorithm: Literal["adamw", "muon"] | None = None
    """Which optimizer updates these parameters."""
    lr: float | None = None
    """Peak learning rate."""
    beta1: float | None = None
    """AdamW's first decay rate."""
    beta2: float | None = None
    """AdamW's second decay rate."""
    eps: float | None = None
    """AdamW's epsilon, outside the root."""
    weight_decay: float | None = None
    """Decoupled weight decay."""

    def __post_init__(self):
        try:
            re.compile(self.match)
        except re.error as error:
            raise InputError(f"optim.groups: match={self.match!r} is not a regular expression: {error}") from error


@dataclass(frozen=True)
class OptimConfig:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

    algorithm: Literal["adamw", "muon"] = "adamw"
    """adamw: nanoGPT's. muon: Muon for every matrix inside the blocks, AdamW for embeddings, norms and biases."""
    lr: float = 6e-4
    """AdamW's peak learning rate."""
    beta1: float = 0.9
    """AdamW's first decay rate."""
    beta2: float = 0.95
    """AdamW's second decay rate."""
    eps: float = 1e-8
    """AdamW's epsilon, outside the root."""
    weight_decay: float = 0.1
    """Decoupled weight decay of parameters of rank two and more; norms and biases have none."""
    grad_clip: float = 1.0
    """Largest global gradient norm, by torch's formula; 0 turns clipping off."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    muon: MuonConfig = field(default_factory=MuonConfig)
    groups: tuple[GroupConfig, ...] = ()
    """Exceptions by parameter path; the first match counts."""

    def __post_init__(self):
        for name in ("lr", "eps", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            _require(value >= 0, f"optim.{name}={value} is negative; choose 0 or more")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}={value} is outside [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out. data and fsdp split the batch, fsdp and tensor split the parameters."""

    data: int = 0
    """Copies of the model, each with its part of the batch; 0: all devices that fsdp and tensor leave."""
    fsdp: int = 1
    """Devices over which parameters, gradients and optimizer state are split."""
    tensor: int = 1
    """Devices over which heads, MLP width and vocabulary are split."""
    platform: Literal["", "cpu", "gpu", "tpu"] = ""
    """Kind of device; empty: the fastest that is there."""

    def __post_init__(self):
        _require(self.data >= 0, f"mesh.data={self.data} is negative; 0 takes all devices that are left")
        for name in ("fsdp", "tensor"):
            value = getattr(self, name)
            _require(value >= 1, f"mesh.{name}={value} is below 1; 1 turns it off")


@dataclass(frozen=True)
class HostsConfig:
    """Several processes, one run. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do the same."""

    coordinator: str = ""
    """host:port of process 0; empty: from the environment (SLURM, Open MPI, TPU pods, the variables above)."""
    count: int = 0
    """Number of processes; 0: from the environment, else 1."""
    index: int = -1
    """Number of this process, from 0; -1: from the environment."""


@dataclass(frozen=True)
class EvalConfig:
    """Validation during the run."""

    every: int = 2000
    """Steps between evaluations; the last step is always evaluated. 0: only the last."""
    tokens: int = 1_000_000
    """Validation tokens per evaluation, the same ones each time, spread over the set; 0: all."""

    def __post_init__(self):
        _require(self.every >= 0, f"eval.every={self.every} is negative; 0 evaluates at the end only")
        _require(self.tokens >= 0, f"eval.tokens={self.tokens} is negative; 0 takes the whole set")


@dataclass(frozen=True)
class LogConfig:
    """What is written while training. metrics.jsonl always is."""

    every: int = 10
    """Steps between records in metrics.jsonl and on the sinks."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (extra: tracking)."""
    wandb_project: str = ""
    """Also log to this Weights & Biases project (extra: tracking); empty: no."""

    def __post_init__(self):
        _require(self.every >= 1, f"log.every={self.every} is below 1; 1 logs each step")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved. It always is at the end and on SIGTERM or Ctrl-C."""

    every: int = 1000
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_best: bool = True
    """Keep the one with the lowest validation loss too."""

    def __post_init__(self):
        _require(self.every >= 0, f"checkpoint.every={self.every} is negative; 0 saves at the end only")
        _require(self.keep >= 1, f"checkpoint.keep={self.keep} is below 1; a run needs one to go on from")


@dataclass(frozen=True)
class SampleConfig:
    """Text written by the model while it trains."""

    every: int = 0
    """Steps between samples; 0: none."""
    prompt: str = "\n"
    """What the sample goes on from."""
    max_tokens: int = 200
    """Length of a sample in tokens."""
    temperature: float = 0.8
    """0 takes the most likely token; 1 samples from the model's distribution."""
    top_k: int = 200
    """Sample among this many most likely tokens; 0: all."""

    def __post_init__(self):
        _require(self.every >= 0, f"sample.every={self.every} is negative; 0 writes no samples")
        _require(self.max_tokens >= 1, f"sample.max_tokens={self.max_tokens} is below 1")
        _require(self.temperature >= 0, f"sample.temperature={self.temperature} is negative; 0 is greedy")
        _require(self.top_k >= 0, f"sample.top_k={self.top_k} is negative; 0 keeps all tokens")


@dataclass(frozen=True)
class Config:
    """One training run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: GPT2Config = field(default_factory=GPT2Config)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self):
        for stage in self.train.stages:
            _require(
                stage.from_step < self.train.steps,
                f"train.stages: from_step={stage.from_step} is not below "
                f"train.steps={self.train.steps}; drop the stage",
            )
        n_devices = max(self.mesh.data, 1) * self.mesh.fsdp
        for batch_tokens in self.stage_batch_tokens():
            count_microbatches(self, batch_tokens, n_devices)

    def stage_batch_tokens(self) -> list[int]:
        """Tokens per step of each stage, the config's own first."""
        own = self.train.batch_tokens
        return [own] + [stage.batch_tokens or own for stage in self.train.stages]


def count_microbatches(config: Config, batch_tokens: int, n_devices: int) -> int:
    """Microbatches per optimizer step, when `n_devices` devices share the batch.

    Raises:
      InputError: batch_tokens is no multiple of what one micro step takes; names the nearest that are.
    """
    rows, seq_len = config.train.micro_batch_size, config.model.seq_len
    unit = rows * seq_len * n_devices
    if batch_tokens % unit:
        lower = batch_tokens // unit * unit
        nearest = f"{lower}, {lower + unit}" if lower else f"{unit}"
        raise InputError(
            f"train.batch_tokens={batch_tokens} is not a multiple of train.micro_batch_size={rows} x "
            f"model.seq_len={seq_len} x {n_devices} device{'s' * (n_devices > 1)} = {unit}; nearest: {nearest}"
        )
    return batch_tokens // unit


def load(path: str | Path) -> Config:
    """The value named `config` in a Python file.

    Raises:
      InputError: no such file, not Python, or no Config named `config` in it.
    """
    path = Path(path)
    if not path.is_file():
        shipped = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none here"
        raise InputError(f"--config={path} does not exist; configs in this directory: {shipped}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (SyntaxError, UnicodeDecodeError, NameError, ImportError, TypeError, ValueError) as error:
        raise InputError(f"--config={path} is not a config: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise InputError(f"--config={path} has no value named config of type jaxgpt.config.Config; see configs/")
    return config


def to_dict(value: Any) -> Any:
    """A config as JSON holds it: dicts, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """The dicts of `to_dict` as dotted name -> value."""
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {k: v for name, value in values.items() for k, v in flatten(value, f"{prefix}{name}.").items()}


def from_dict(values: Any, kind: Any = Config, path: str = "") -> Any:
    """The inverse of `to_dict`. Runs no code; unknown names and wrong types raise InputError."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(values, dict):
            raise InputError(f"saved config: {path or 'top level'} is not a section")
        for name in values:
            if name not in hints:
                raise InputError(f"saved config: no field {path}{name}; it was written by another version")
        return kind(**{name: from_dict(v, hints[name], f"{path}{name}.") for name, v in values.items()})
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(from_dict(v, options[0], path) for v in values)
    if origin in (typing.Union, types.UnionType):
        return None if values is None else from_dict(values, options[0], path)
    if origin is Literal:
        is_good = values in options
    elif kind is float:
        is_good = isinstance(values, int | float) and not isinstance(values, bool)
        values = float(values) if is_good else values
    else:
        is_good = type(values) is kind
    if not is_good:
        raise InputError(f"saved config: {path.rstrip('.')}={values!r} is not of type {kind}")
    return values


def to_source(config: Config) -> str:
    """A Python file that `load` reads back to the same value."""
    names = sorted(name for name in globals() if name.endswith("Config") and f"{name}(" in repr(config))
    imports = f"from jaxgpt.config import {', '.join(names)}"
    value = pprint.pformat(config, width=100)
    return f'"""Settings of this run, overrides included."""\n\n{imports}\n\nconfig = {value}\n'
