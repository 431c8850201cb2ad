"""The settings of schedules, Muon, AdamW and parameter groups.

`jaxgpt.config` puts an `OptimConfig` into a run. Learning rates that follow the width or the batch are scaled by
`jaxgpt.config.derive` before the run starts.
"""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxgpt.config.section import Section, show
from jaxgpt.errors import InputError, require


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The learning rate over the run, as a factor on every group's peak."""

    PATH: ClassVar = "optim.schedule."

    kind: Literal["cosine", "constant", "trapezoid"] = "cosine"
    """cosine: nanoGPT. constant. trapezoid: flat, then linear down over the last warmdown_frac of the run."""
    warmup_steps: int = 0
    """Linear warm-up: step n has (n + 1) / (warmup_steps + 1) of the peak; trapezoid, as nanochat: / warmup_steps."""
    decay_steps: int = 0
    """Step at which the decay ends; 0: train.steps."""
    min_lr_frac: float = 0.1
    """Learning rate at the end of the decay, as a fraction of the peak."""
    warmdown_frac: float = 0.2
    """trapezoid: fraction of the run over which the rate falls."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("warmup_steps", "decay_steps"):
            value = getattr(self, name)
            require(value >= 0, f"optim.schedule.{name}={value} is negative; 0 turns it off")
        for name in ("min_lr_frac", "warmdown_frac"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.schedule.{name}={value} is outside [0, 1]")
        require(
            not self.decay_steps or self.warmup_steps <= self.decay_steps,
            f"optim.schedule.warmup_steps={self.warmup_steps} is above optim.schedule.decay_steps={self.decay_steps}; "
            "the decay would end before it begins; lower the warm-up",
        )


@dataclass(frozen=True)
class MuonConfig(Section):
    """Muon (Keller Jordan, 2024): momentum, orthogonalised by an iteration; and what nanochat added by July 2026."""

    PATH: ClassVar = "optim.muon."

    lr: float = 0.02
    """Peak learning rate of the matrices."""
    lr_follows_batch: bool = False
    """Multiply lr by sqrt(batch_tokens / 2**19)."""
    momentum: float = 0.95
    """Momentum."""
    momentum_start: float = 0.85
    """Momentum at step 0."""
    momentum_warmup_steps: int = 0
    """Steps over which momentum rises from momentum_start to momentum; 0: constant."""
    momentum_end: float = -1.0
    """Momentum at the end of the run, reached linearly over the warm-down; -1: constant."""
    momentum_cooldown_steps: int = 0
    """Last steps of the run, over which momentum falls to momentum_end; 0: over the learning rate's warm-down."""
    nesterov: bool = True
    """Nesterov momentum."""
    orthogonalizer: Literal["newton_schulz", "newton_schulz_exact", "polar_express"] = "newton_schulz"
    """newton_schulz: one quintic, repeated (Jordan); ends near 1. newton_schulz_exact: 2, -1.5, 0.5 instead, which ends
    at 1 and needs about 12 steps. polar_express: five, each optimal for its iteration."""
    ns_steps: int = 5
    """Iterations; polar_express has five at most."""
    ns_dtype: Literal["auto", "bfloat16", "float32", "float64"] = "float32"
    """Dtype of the iteration. bfloat16 is the originals' choice and fast on a GPU; slow on a CPU. auto: train.dtype."""
    ns_margin: float = 1.01
    """polar_express: matrices are first divided by ns_margin x their norm. nanochat has 1.01, modded-nanogpt 1.02."""
    equilibrate_rows: bool = False
    """Rescale all rows (outputs) of the momentum to the same norm before orthogonalising (MuonEq)."""
    renormalize: bool = False
    """Rescale the result to the Frobenius norm of an exactly orthogonal matrix (Muon+)."""
    norm_beta2: float = 0.0
    """NorMuon: running mean of the squares along the shorter side, whose root the update is divided by; 0: off."""
    norm_axis_if_square: Literal["inputs", "outputs"] = "inputs"
    """NorMuon: what a square matrix is averaged over. modded-nanogpt's record 46 has outputs, all later ones inputs."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices."""
    decay_follows_horizon: bool = False
    """Multiply weight_decay by sqrt(batch_tokens / 2**19) x horizon of depth 12 / horizon, at most up to 0.6."""
    decay_follows_lr: bool = False
    """Multiply weight_decay by the scheduled optim.muon.lr, so that decay falls with its square (modded-nanogpt)."""
    decay_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: weight decay falls to 0 over the run by half a cosine."""
    cautious: bool = False
    """Decay only weights that the update also shrinks, times the same factor for tall matrices as the update."""

    def __post_init__(self):
        super().__post_init__()
        require(self.lr >= 0, f"optim.muon.lr={self.lr} is negative")
        require(self.ns_steps >= 1, f"optim.muon.ns_steps={self.ns_steps} is below 1")
        require(
            self.momentum_warmup_steps >= 0,
            f"optim.muon.momentum_warmup_steps={self.momentum_warmup_steps} is negative; 0 turns it off",
        )
        require(
            self.orthogonalizer != "polar_express" or self.ns_steps <= 5,
            f"optim.muon.ns_steps={self.ns_steps} is above 5; polar_express has five coefficients",
        )
        require(
            self.ns_margin >= 1,
            f"optim.muon.ns_margin={self.ns_margin} is below 1; polar_express diverges on singular values above 1",
        )
        require(self.weight_decay >= 0, f"optim.muon.weight_decay={self.weight_decay} is negative")
        for name in ("momentum", "momentum_start", "norm_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.muon.{name}={value} is outside [0, 1)")
        require(
            self.momentum_end == -1 or 0 <= self.momentum_end < 1,
            f"optim.muon.momentum_end={self.momentum_end} is outside [0, 1); -1 keeps the momentum",
        )
        require(
            self.momentum_cooldown_steps >= 0,
            f"optim.muon.momentum_cooldown_steps={self.momentum_cooldown_steps} is negative; 0 follows the warm-down",
        )
        require(
            not self.momentum_cooldown_steps or self.momentum_end >= 0,
            f"optim.muon.momentum_cooldown_steps={self.momentum_cooldown_steps} has no optim.muon.momentum_end to fall "
            "to; give one, such as 0.85",
        )

    def of_update(self) -> dict[str, Any]:
        """Settings of the update itself, by name; learning rate and decay are each parameter's."""
        return {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "orthogonalizer": self.orthogonalizer,
            "ns_steps": self.ns_steps,
            "ns_dtype": self.ns_dtype,
            "ns_margin": self.ns_margin,
            "equilibrate_rows": self.equilibrate_rows,
            "renormalize": self.renormalize,
            "norm_beta2": self.norm_beta2,
            "norm_axis_if_square": self.norm_axis_if_square,
            "decay_lr": self.lr if self.decay_follows_lr else None,
            "cautious": self.cautious,
        }


@dataclass(frozen=True)
class AdamConfig(Section):
    """modded-nanogpt's Adam: cautious decay by the square of the learning rate, and updates every few steps only."""

    PATH: ClassVar = "optim.adam."

    lr: float = 0.008
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay rate of the mean of gradients."""
    beta2: float = 0.99
    """Decay rate of the mean of their squares."""
    eps: float = 1e-10
    """Added to the root of the mean of squares before the correction for its start at zero."""
    weight_decay: float = 0.005
    """Decay of parameters of rank two and more, times the square of the learning rate."""
    every: int = 2
    """Update in every second step, say, with the gradients of both summed; 1: in each."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            require(value >= 0, f"optim.adam.{name}={value} is negative; choose 0 or more")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.adam.{name}={value} is outside [0, 1)")
        require(self.every >= 1, f"optim.adam.every={self.every} is below 1; 1 updates in each step")


@dataclass(frozen=True)
class GroupConfig(Section):
    """Settings for the parameters whose path matches; a field that is None overrides nothing."""

    PATH: ClassVar = "optim.groups: "

    match: str
    """Regular expression, searched in paths such as wte.weight or h.0.attn.c_proj.weight."""
    name: str = ""
    """Name of the group on the command line: --optim.groups.<name>.lr=...; its index works too."""
    algorithm: Literal["adamw", "adam", "muon"] | None = None
    """Which optimizer updates these parameters: adam has its other settings in optim.adam, muon in optim.muon."""
    lr: float | None = None
    """Peak learning rate."""
    beta1: float | None = None
    """AdamW's and Adam's first decay rate."""
    beta2: float | None = None
    """AdamW's and Adam's second decay rate."""
    eps: float | None = None
    """AdamW's and Adam's epsilon, outside the root."""
    weight_decay: float | None = None
    """Decoupled weight decay."""
    lr_follows_width: bool = False
    """Multiply lr by sqrt(768 / n_embd)."""
    lr_follows_batch: bool = False
    """Multiply lr by sqrt(batch_tokens / 2**19)."""

    def __post_init__(self):
        super().__post_init__()
        try:
            re.compile(self.match)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"optim.groups: match={show(self.match)} is not a regular expression: {error}") from error
        follows = self.lr_follows_width or self.lr_follows_batch
        require(
            not follows or self.lr is not None,
            f"optim.groups: match={self.match!r} has no lr to scale with width or batch; set one",
        )
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"optim.groups: match={self.match!r} {name}={value} is negative")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value < 1, f"optim.groups: match={self.match!r} {name}={value} is outside [0, 1)"
            )


@dataclass(frozen=True)
class OptimConfig(Section):
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

    PATH: ClassVar = "optim."

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
    grad_divisor: float = 0.0
    """What the gradient of the summed loss is divided by; 0: by the number of tokens, which gives the mean's."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    muon: MuonConfig = field(default_factory=MuonConfig)
    adam: AdamConfig = field(default_factory=AdamConfig)
    tie_until: int = 0
    """Steps in which wte.weight and lm_head.weight are one: lm_head has both gradients, wte is a copy; 0: none."""
    groups: tuple[GroupConfig, ...] = ()
    """Exceptions by parameter path; the first match counts."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("lr", "eps", "weight_decay", "grad_clip", "grad_divisor"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}={value} is negative; choose 0 or more")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name}={value} is outside [0, 1)")
        require(self.tie_until >= 0, f"optim.tie_until={self.tie_until} is negative; 0 turns it off")
        names = [group.name for group in self.groups if group.name]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"optim.groups: the name {', '.join(map(show, twice[:3]))} is given twice; choose another")
