"""modded-nanogpt's runs: optimizers of records 62 and 46 and of track 3, and the records' tables of stages.

A config file uses an optimizer and a table, and sets the rest itself. Learning rates and decays of single parameters
are the originals' factors multiplied out.

Source: https://github.com/KellerJordan/modded-nanogpt (93f0e6b, 25500ab; track 3: f411b3d).
"""

from jaxgpt.config.optimizer import AdamConfig, GroupConfig, MuonConfig, OptimConfig, ScheduleConfig
from jaxgpt.config.stages import StageConfig

_TRAPEZOID = ScheduleConfig(kind="trapezoid", warmdown_frac=0.55, min_lr_frac=0.1)
_NORMUON = MuonConfig(
    lr=0.023, momentum=0.95, momentum_start=0.85, momentum_warmup_steps=300, momentum_end=0.85,
    momentum_cooldown_steps=50, orthogonalizer="polar_express", ns_margin=1.02, ns_dtype="auto", norm_beta2=0.95,
    weight_decay=1.2, cautious=True, decay_follows_lr=True,
)  # fmt: skip
_ADAM_LR, _ADAM_DECAY = 0.008, 0.005


def _adam(name: str, match: str, factor: float, betas: tuple[float, float], decay: float = 0.0) -> GroupConfig:
    """Parameters with a factor on Adam's learning rate, and one on its decay."""
    beta1, beta2 = betas
    return GroupConfig(
        name=name, match=match, algorithm="adam", lr=_ADAM_LR * factor, beta1=beta1, beta2=beta2,
        weight_decay=_ADAM_DECAY * decay,
    )  # fmt: skip


def speedrun_62(*, scheduled_steps: int, tied_steps: int) -> OptimConfig:
    """Record 62: NorMuon for the blocks; Adam, in every second step, for all else; embedding and head tied at first.

    Args:
      scheduled_steps: at whose end the learning rate is lowest; steps after them keep it.
      tied_steps: embedding and head are one in so many steps.
    """
    return OptimConfig(
        algorithm="muon", grad_clip=0.0, grad_divisor=8.0, tie_until=tied_steps, muon=_NORMUON,
        schedule=_with_end(scheduled_steps),
        adam=AdamConfig(lr=_ADAM_LR, eps=1e-10, weight_decay=_ADAM_DECAY, every=2),
        groups=(
            GroupConfig(name="c_proj", match=r"\.mlp\.c_proj\.", lr=4 * _NORMUON.lr),
            _adam("smear_gate", r"^smear_gate\.", 0.01, (0.9, 0.99)),
            _adam("skip_gate", r"^skip_gate\.", 0.05, (0.9, 0.99)),
            _adam("gates", r"\.attn\.(ve_)?gate\.", 1, (0.9, 0.99), 1),
            _adam("tables", r"^(value_embeds|bigram_embed)\.", 75, (0.75, 0.95), 5),
            _adam("tied", r"^(wte|lm_head)\.", 1, (0.5, 0.95), 150),
            _adam("x0_lambdas", r"^x0_lambdas$", 5, (0.65, 0.95)),
            _adam("lambdas", r"_lambdas?$", 5, (0.9, 0.99)),
        ),
    )  # fmt: skip


def speedrun_46(*, scheduled_steps: int) -> OptimConfig:
    """Record 46: NorMuon for the blocks and the gates, Adam without decay for the rest."""
    muon, betas = {"algorithm": "muon", "lr": _NORMUON.lr}, (0.65, 0.95)
    return OptimConfig(
        algorithm="muon", grad_clip=0.0, grad_divisor=8.0, schedule=_with_end(scheduled_steps),
        muon=MuonConfig(**{**vars(_NORMUON), "norm_axis_if_square": "outputs"}),
        adam=AdamConfig(lr=_ADAM_LR, eps=1e-8, weight_decay=0.0, every=2),
        groups=(
            GroupConfig(name="gates", match=r"(^smear_|\.attn\.)gate\.", weight_decay=_NORMUON.weight_decay, **muon),
            _adam("tables", r"^(wte|value_embeds)\.", 75, betas),
            _adam("head", r"^lm_head\.", 1, betas),
            _adam("lambdas", r"_lambdas?$", 5, betas),
        ),
    )  # fmt: skip


def _with_end(scheduled_steps: int) -> ScheduleConfig:
    return ScheduleConfig(**{**vars(_TRAPEZOID), "decay_steps": scheduled_steps})


TRACK_3 = OptimConfig(
    algorithm="muon", lr=0.015, beta1=0.8, beta2=0.95, eps=1e-10, weight_decay=0.001, grad_clip=0.0, grad_divisor=1.0,
    schedule=ScheduleConfig(kind="trapezoid", warmdown_frac=0.7, min_lr_frac=0.0),
    muon=MuonConfig(
        lr=0.025, momentum=0.95, orthogonalizer="newton_schulz_exact", ns_steps=12, ns_dtype="auto", weight_decay=0.05
    ),
    groups=(
        GroupConfig(name="wte", match=r"^wte\.", lr=0.7),
        GroupConfig(name="lm_head", match=r"^lm_head\.weight", lr=0.004),
        GroupConfig(name="vectors", match=r"\.(bias|gains)$", weight_decay=0.001),
    ),
)  # fmt: skip
"""Track 3: Muon for the blocks; AdamW for embedding, head, biases and gains."""


def speedrun_stages(
    *,
    scheduled_steps: int,
    batch_tokens: tuple[int, int, int],
    windows: tuple[tuple[int, int], ...],
    lr_from: tuple[float, float],
    lr_scales: tuple[float, float],
    target_weights: tuple[tuple[float, ...], ...] = (),
    block_tokens: int = 128,
    n_rows: int = 8,
) -> tuple[StageConfig, ...]:
    """The rows after the first of a record's table: thirds of the scheduled steps, then the extension.

    Batch and windows change with the thirds, the learning rate once the part of the run exceeds `lr_from`, which in
    record 62 is a step later and in record 46 several earlier.

    Args:
      windows: (short, long) in blocks to the left of a query: of the second third, of the last, of the extension.
      lr_scales: from the two parts of the run in `lr_from` on.
      target_weights: of the second third and the last; empty: the next token alone throughout.
      n_rows: rows of a step; a row has batch_tokens / n_rows tokens.
    """
    firsts = [next(s for s in range(scheduled_steps) if int(3 * s / scheduled_steps) == third) for third in (1, 2)]
    firsts.append(scheduled_steps)
    changes: dict[int, dict[str, object]] = {}
    for i, (step, (short, long)) in enumerate(zip(firsts, windows, strict=True)):
        changes[step] = {"short_window": block_tokens * short + 1, "long_window": block_tokens * long + 1}
        if i < 2:
            changes[step] |= {"batch_tokens": batch_tokens[i + 1], "seq_len": batch_tokens[i + 1] // n_rows}
            changes[step] |= {"target_weights": target_weights[i]} if target_weights else {}
    for part, scale in zip(lr_from, lr_scales, strict=True):
        step = next(s for s in range(scheduled_steps) if s / scheduled_steps > part)
        changes.setdefault(step, {})["lr_scale"] = scale
    rows, kept = [], {"batch_tokens": batch_tokens[0], "lr_scale": 1.0}
    for step in sorted(changes):
        kept |= {name: value for name, value in changes[step].items() if name in kept}
        rows.append(StageConfig(from_step=step, **{**changes[step], **kept}))  # pyright: ignore[reportArgumentType]
    return tuple(rows)
