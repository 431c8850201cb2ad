"""The settings of a run: frozen dataclasses, one value per file in `configs/`, overrides by dotted name.

Checks within a section are in its `__post_init__`, checks across sections in that of `Config`.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxgpt.config.chat import ChatConfig
from jaxgpt.config.data import DataConfig
from jaxgpt.config.families import GPT2Config, ModelConfig
from jaxgpt.config.machines import HostsConfig, MeshConfig
from jaxgpt.config.optimizer import OptimConfig
from jaxgpt.config.rl import RLConfig
from jaxgpt.config.section import Section, UserLocation, UserPath
from jaxgpt.config.stages import StageConfig, check_target_weights
from jaxgpt.errors import InputError, require


@dataclass(frozen=True)
class RunConfig(Section):
    """Where the run lives and what makes it reproducible."""

    PATH: ClassVar = "run."

    dir: UserLocation = ""
    """Directory of the run; empty: runs/<name of the config file>."""
    seed: int = 1337
    """Seed of the weights, the batches and dropout. Two runs with one config and seed are the same run."""

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.seed < 2**32, f"run.seed={self.seed} is outside [0, 2**32); choose one inside")


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training step and how many of them are run."""

    PATH: ClassVar = "train."

    steps: int = 600_000
    """Optimizer steps of the whole run; 0: as many as the token horizon needs."""
    target_flops: float = 0.0
    """Horizon for steps=0, in FLOPs of the whole run; 0: by target_param_data_ratio."""
    target_param_data_ratio: float = 0.0
    """Horizon for steps=0, in tokens per parameter; 0: 20 (nanochat 2025, all), 12 (2026, blocks and head)."""
    batch_tokens: int = 491_520
    """Tokens per optimizer step, over all devices and microbatches; 0, for nanochat: by its horizon."""
    micro_batch_size: int = 12
    """Rows per device in one forward-backward pass; batch_tokens decides the accumulation. auto or 0: what fits."""
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"
    """Dtype of the computation. Parameters and optimizer state stay float32 (float64 keeps them float64)."""
    matmul_precision: Literal["highest", "high", "default"] = "highest"
    """For float32: highest is true float32; high and default allow TF32 on a GPU, bfloat16 passes on a TPU."""
    deterministic: bool = False
    """The same bits in each run on a GPU too: no atomic sums and no autotuning, which is slower. On a CPU or TPU runs
    give the same bits without it."""
    guard_miscompiles: bool = True
    """Leave out passes of XLA for which wrong results are known: on a CPU reductions fused by YNNPACK (steps take 1 to
    5 % longer), on several TPU chips sums of embedding gradients moved out of the loop over microbatches."""
    attention: Literal["auto", "cudnn", "triton", "splash", "xla"] = "auto"
    """auto: flash attention where it supports the run (on GPU cudnn, for documents triton; on TPU splash), else xla."""
    remat: Literal["auto", "none", "dots", "block"] = "none"
    """Activation checkpointing: keep everything, keep matmul outputs, or keep only the input of each block. auto:
    the first of them that fits."""
    loss_chunk_tokens: int = 8192
    """Tokens per device whose logits exist at one time."""
    logits_dtype: Literal["compute", "float32"] = "compute"
    """Of the logits as the training loss writes them: compute (train.dtype), or float32, for parity. The softmax has
    float32 or wider in both, and so have the logits of evaluations."""
    head_dtype: Literal["compute", "float8", "float8_emulated"] = "compute"
    """Of the head's products while training: compute (train.dtype), float8 (NVIDIA cards of compute capability 8.9 or
    more) or float8_emulated (the same rounding of the operands, on any device)."""
    head_x_scale: float = 100 / 448
    """float8: what hidden states are divided by before they are rounded; the largest that fits is 448 times this."""
    head_weight_scale: float = 1.6 / 448
    """float8: the same for the head's weights."""
    head_gradient_scale: float = 0.75 / 448
    """float8: the same for the gradient of the logits, of a loss summed over tokens."""
    init_from: UserPath = ""
    """Weights to start from: gpt2, gpt2-medium, gpt2-large, gpt2-xl, a directory of Hugging Face's or nanochat's, or a
    nanoGPT ckpt.pt."""
    max_skips: int = 5
    """Consecutive non-finite steps (each is skipped and changes nothing) after which the run stops."""
    spike_window: int = 128
    """Steps whose median loss a step is compared with; 0: loss spikes are not reported."""
    spike_sigmas: float = 8.0
    """A loss spike is so many robust standard deviations above that median."""
    spike_rollback: bool = False
    """Go back to the checkpoint before a spike and leave out the data up to it; one process only."""
    watchdog_s: float = 600.0
    """Seconds without a finished step after which stacks.txt in run.dir gets the stacks of all threads; 0: never."""
    target_weights: tuple[float, ...] = (1.0,)
    """Weights of the targets 1, 2, ... tokens ahead at step 0; train.stages may change them. (1.0,): the next token."""
    stages: tuple[StageConfig, ...] = ()
    """Later parts of the run with another batch, learning rate, row length, window or weights of targets."""

    def __post_init__(self):
        super().__post_init__()
        rows = self.micro_batch_size
        require(rows >= 0, f"train.micro_batch_size={rows} is negative; choose a positive number, or auto")
        for name in ("loss_chunk_tokens", "max_skips"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}={value} is below 1; choose a positive number")
        for name in ("spike_window", "spike_sigmas", "watchdog_s"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name}={value} is negative; 0 turns it off")
        for name in ("steps", "batch_tokens", "target_flops", "target_param_data_ratio"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name}={value} is negative; 0 derives it")
        check_target_weights("train.target_weights", self.target_weights)
        for name in ("head_x_scale", "head_weight_scale", "head_gradient_scale"):
            value = getattr(self, name)
            require(value > 0, f"train.{name}={value} is not above 0; a largest value divided by 448 is usual")
        for before, after in itertools.pairwise(stage.from_step for stage in self.stages):
            require(before < after, f"train.stages start at {before}, then at {after}; list them in rising order")

    def loss_chunk_len(self, seq_len: int) -> int:
        """Positions of each row whose logits exist at one time: loss_chunk_tokens, in chunks of one length.

        Rows are cut into as few chunks as the limit permits, and then evenly: cut at the limit, rows of 1024 at 682
        positions would be padded to 1364, and the head would do a third more work.
        """
        limit = max(1, self.loss_chunk_tokens // self.micro_batch_size)
        n_chunks = math.ceil(seq_len / limit)
        return math.ceil(seq_len / n_chunks)


@dataclass(frozen=True)
class EvalConfig(Section):
    """Validation during the run."""

    PATH: ClassVar = "eval."

    every: int = 2000
    """Steps between evaluations; the last step is always evaluated. 0: only the last."""
    tokens: int = 1_000_000
    """Validation tokens per evaluation, the same ones each time; 0: all."""
    spread: bool = True
    """Rows come from all over the set; False: one after the other from its start, as modded-nanogpt evaluates."""
    seq_len: int = 0
    """Tokens of a row in every evaluation; 0: model.seq_len, also where later stages train on other rows."""
    long_window: int = 0
    """The model's long_window in the evaluation after the last step; 0: as trained."""

    def __post_init__(self):
        super().__post_init__()
        require(self.seq_len >= 0 and self.seq_len != 1, f"eval.seq_len={self.seq_len}; choose 2 or more, or 0")
        require(self.long_window >= 0, f"eval.long_window={self.long_window} is negative; 0 keeps the trained one")
        require(self.every >= 0, f"eval.every={self.every} is negative; 0 evaluates at the end only")
        require(self.tokens >= 0, f"eval.tokens={self.tokens} is negative; 0 uses the whole set")


@dataclass(frozen=True)
class LogConfig(Section):
    """What is written while training, besides metrics.jsonl."""

    PATH: ClassVar = "log."

    every: int = 10
    """Steps between records in metrics.jsonl and in the trackers."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (extra: tracking)."""
    wandb_project: str = ""
    """Also log to this Weights & Biases project (extra: tracking); empty: no."""
    trackio_project: str = ""
    """Also log to this trackio project (extra: tracking); empty: no."""

    def __post_init__(self):
        super().__post_init__()
        require(self.every >= 1, f"log.every={self.every} is below 1; 1 logs each step")


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When checkpoints are saved. One is always saved at the end and on SIGTERM or Ctrl-C."""

    PATH: ClassVar = "checkpoint."

    every: int = 1000
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """How many of the newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation loss."""

    def __post_init__(self):
        super().__post_init__()
        require(self.every >= 0, f"checkpoint.every={self.every} is negative; 0 saves at the end only")
        require(self.keep >= 1, f"checkpoint.keep={self.keep} is below 1; a run needs one to resume from")


@dataclass(frozen=True)
class SampleConfig(Section):
    """Text written by the model while it trains."""

    PATH: ClassVar = "sample."

    every: int = 0
    """Steps between samples; 0: none."""
    prompt: str = "\n"
    """Text that the sample continues."""
    max_tokens: int = 200
    """Length of a sample in tokens."""
    temperature: float = 0.8
    """0 chooses the most likely token; 1 samples from the model's distribution."""
    top_k: int = 200
    """Sample among this many most likely tokens; 0: all."""

    def __post_init__(self):
        super().__post_init__()
        require(self.every >= 0, f"sample.every={self.every} is negative; 0 writes no samples")
        require(self.max_tokens >= 1, f"sample.max_tokens={self.max_tokens} is below 1")
        require(self.temperature >= 0, f"sample.temperature={self.temperature} is negative; 0 is greedy")
        require(self.top_k >= 0, f"sample.top_k={self.top_k} is negative; 0 keeps all tokens")


@dataclass(frozen=True)
class Config(Section):
    """One training run."""

    run: RunConfig = field(default_factory=RunConfig)
    """directory, seed"""
    model: ModelConfig = field(default_factory=GPT2Config)
    """family, layers, width"""
    data: DataConfig = field(default_factory=DataConfig)
    """directory, reading order"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """steps, batch, dtype"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW, Muon, schedule"""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """layout of the devices"""
    hosts: HostsConfig = field(default_factory=HostsConfig)
    """several processes"""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """validation"""
    log: LogConfig = field(default_factory=LogConfig)
    """records, trackers"""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """when, how many"""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """text while training"""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """conversations, base run"""
    rl: RLConfig = field(default_factory=RLConfig)
    """own answers, rewards"""

    def __post_init__(self):
        super().__post_init__()
        for stage in self.train.stages:
            require(
                stage.from_step < self.train.steps or not self.train.steps,
                f"train.stages: from_step={stage.from_step} is not below "
                f"train.steps={self.train.steps}; drop the stage",
            )
        longest = self.model.longest_row()
        seq_lens = {f"train.stages: seq_len={stage.seq_len}": stage.seq_len for stage in self.train.stages}
        for named, seq_len in (seq_lens | {f"eval.seq_len={self.eval.seq_len}": self.eval.seq_len}).items():
            require(
                longest is None or seq_len <= longest,
                f"{named} is above model.seq_len={longest}, for which model.family={self.model.family} learns "
                "positions; lower it, or begin with the longest rows",
            )
        lengths = list(dict.fromkeys(self.stage_seq_lens()))
        require(
            not (self.data.is_text or self.data.is_chat) or len(lengths) == 1,
            f"train.stages: seq_len={lengths[-1]} differs from model.seq_len={lengths[0]}, but data.sampling="
            f"{self.data.sampling} packs rows of one length; prepare token shards, or leave seq_len out",
        )
        for name in ("base", "optimizer", "trained", "tasks"):
            value, usual = getattr(self.chat, name), getattr(ChatConfig(), name)
            require(
                self.data.is_chat or value == usual,
                f"chat.{name}={value} is for conversations, data.sampling={self.data.sampling} is not; "
                "set --data.sampling=conversations, or leave it out",
            )
        require(
            not self.data.is_chat or self.is_next_token(),
            "train.target_weights are for text, data.sampling=conversations predicts the next token; leave them out",
        )
        require(
            self.eval.spread or not (self.data.is_text or self.data.is_chat),
            f"eval.spread=False does not apply to data.sampling={self.data.sampling}, whose rows are packed from all "
            "documents; prepare token shards, or drop it",
        )
        self.rl.check_run(self.data, self.train, self.optim, self.checkpoint, self.model.seq_len)
        self.eval_models()
        n_devices = max(self.mesh.data, 1) * self.mesh.fsdp
        for stage, batch_tokens in enumerate(self.stage_batch_tokens()):
            if batch_tokens and self.train.micro_batch_size:
                count_microbatches(self, stage, n_devices)

    @property
    def is_rl(self) -> bool:
        """Whether the model is trained on its own answers."""
        return self.rl.samples > 0

    @property
    def stage(self) -> Literal["base", "mid", "sft", "rl"]:
        """What a run of this config is of a chat model."""
        return "rl" if self.is_rl else self.chat.stage

    @property
    def step_questions(self) -> int:
        """Questions of a step of RL."""
        return self.train.batch_tokens // (self.model.seq_len * self.rl.samples)

    def is_next_token(self) -> bool:
        """Whether each token predicts the one after it, and no other, in all stages."""
        stages = [stage.target_weights for stage in self.train.stages if stage.target_weights]
        return all(weights == (1.0,) for weights in (self.train.target_weights, *stages))

    def stage_batch_tokens(self) -> list[int]:
        """Tokens per step of each stage, the config's own first."""
        own = self.train.batch_tokens
        return [own] + [stage.batch_tokens or own for stage in self.train.stages]

    def stage_rows(self) -> list[int]:
        """Rows per device in one forward-backward pass, by stage; 0: open, and then in all stages."""
        rows = [self.train.micro_batch_size]
        for stage in self.train.stages:
            rows.append(rows[-1] and (stage.micro_batch_size or rows[-1]))
        return rows

    def stage_lr_scales(self) -> list[float]:
        """Factor on the learning rates in each stage, 1 for the config's own."""
        return [1.0] + [stage.lr_scale for stage in self.train.stages]

    def stage_models(self) -> list[ModelConfig]:
        """The model as each stage trains it: the same parameters.

        Raises:
          InputError: a stage changes a size that the family does not have.
        """
        changes = [stage.sizes() for stage in self.train.stages]
        return [self.model, *(self.model.at_stage(changes[: i + 1]) for i in range(len(changes)))]

    def stage_seq_lens(self) -> list[int]:
        """Tokens of a row in each stage."""
        return [model.seq_len for model in self.stage_models()]

    def eval_models(self) -> list[ModelConfig]:
        """The model as it is evaluated in each stage, and at the end of the run."""
        sizes = {"seq_len": self.eval.seq_len or self.model.seq_len}
        models = [model.resize(sizes, "eval.") for model in self.stage_models()]
        last = {"long_window": self.eval.long_window} if self.eval.long_window else {}
        return [*models, models[-1].resize(last, "eval.")]

    def at_stage(self, stage: int) -> "Config":
        """A run that has this stage's model and batch from its first step to its last.

        Schedules are those of the whole run: ask `schedule.hyper_at` with the config that has the table.
        """
        if not self.train.stages:
            return self
        train = dataclasses.replace(
            self.train,
            batch_tokens=self.stage_batch_tokens()[stage],
            micro_batch_size=self.stage_rows()[stage],
            stages=(),
        )
        return dataclasses.replace(self, model=self.stage_models()[stage], train=train)

    def at_evaluation(self, which: int) -> "Config":
        """A run with one of `eval_models`, whose step is one microbatch: of the fewest rows that a stage has."""
        model, rows = self.eval_models()[which], min(self.stage_rows())
        tokens = rows * model.seq_len * max(self.mesh.data, 1) * self.mesh.fsdp
        return dataclasses.replace(
            self,
            model=model,
            train=dataclasses.replace(self.train, batch_tokens=tokens, micro_batch_size=rows, stages=()),
            eval=dataclasses.replace(self.eval, seq_len=0, long_window=0),
        )

    def without_stages(self) -> "Config":
        """The same run if its first stage lasted to the end."""
        return self.at_stage(0)

    def largest_stage(self) -> "Config":
        """The run as its stage with the most tokens a step, and of those the longest rows, is."""
        sizes = list(zip(self.stage_batch_tokens(), self.stage_seq_lens(), strict=True))
        return self.at_stage(sizes.index(max(sizes)))


def rows_that_divide(config: Config, n_devices: int) -> list[int]:
    """Values of micro_batch_size that divide every stage's batch over the devices that share its rows, ascending."""
    stages = list(zip(config.stage_batch_tokens(), config.stage_seq_lens(), strict=True))
    if any(tokens % (seq_len * n_devices) for tokens, seq_len in stages):
        return []
    most = math.gcd(*(tokens // (seq_len * n_devices) for tokens, seq_len in stages))
    return [n for n in range(1, most + 1) if most % n == 0]


def count_microbatches(config: Config, stage: int, n_devices: int) -> int:
    """Microbatches per optimizer step of a stage, when `n_devices` devices share the batch.

    Raises:
      InputError: the stage's batch is not a multiple of one microbatch's tokens; names the nearest that are.
    """
    rows, seq_len, batch_tokens = (
        config.stage_rows()[stage], config.stage_seq_lens()[stage], config.stage_batch_tokens()[stage],
    )  # fmt: skip
    unit = rows * seq_len * n_devices
    if batch_tokens % unit:
        lower = batch_tokens // unit * unit
        nearest = f"{lower}, {lower + unit}" if lower else f"{unit}"
        section = "train." if config.train.micro_batch_size == rows else ""
        where = f"train.stages: from_step={config.train.stages[stage - 1].from_step}: " if stage else "train."
        raise InputError(
            f"{where}batch_tokens={batch_tokens} is not a multiple of {section}micro_batch_size={rows} x "
            f"{'' if stage else 'model.'}seq_len={seq_len} x {n_devices} device{'s' * (n_devices > 1)} = {unit}; "
            f"nearest: {nearest}{_devices_that_divide(config, n_devices)}"
        )
    return batch_tokens // unit


def _devices_that_divide(config: Config, n_devices: int) -> str:
    """For a message: numbers of devices, up to twice this one, over which every stage's microbatches divide."""
    stages = list(zip(config.stage_batch_tokens(), config.stage_seq_lens(), config.stage_rows(), strict=True))
    counts = [
        n
        for n in range(1, 2 * n_devices + 1)
        if all(tokens % (rows * seq_len * n) == 0 for tokens, seq_len, rows in stages)
    ]
    return f"; {', '.join(map(str, counts))} devices divide it" if n_devices > 1 and counts else ""
