"""Runs small enough for seconds, in which every part of a recipe is at work: what gates and mutations are tried on.

RECIPES train one model from the first step to the last. MODDED_RECIPES are modded-nanogpt's: records 62 and 46 change
rows, windows and YaRN with the stages of a run, record 62 its targets as well, and it splits embedding and head.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxgpt.compare.trajectories import settle
from jaxgpt.config import (
    MODDED_46,
    MODDED_62,
    MODDED_TRACK3,
    NANOCHAT_2025,
    NANOCHAT_2026,
    Config,
    GPT2Config,
    MeshConfig,
    ModdedConfig,
    MuonConfig,
    NanochatConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
    schedule,
    speedrun_stages,
)
from jaxgpt.data.batch import Batch

VOCAB = 64
N_ROWS = 8
SEQ_LEN = 32
RECIPES = ("adamw", "muon", "nanochat2025", "nanochat2026")
MODDED_RECIPES = ("modded62", "modded46", "track3")
ALL_RECIPES = (*RECIPES, *MODDED_RECIPES)
CLIP = 0.5
"""Gradient norm, where a recipe has one: below that of every step, so that clipping has a part in all of them."""
MUON_LR = 5e-3
"""Of GPT-2. At 0.02 Newton-Schulz, which lifts small singular values a hundredfold, lifts float32's rounding to 6e-5 in
200 steps, and bfloat16's out of its gates."""
NANOCHAT_LR = {"2025": 0.025, "2026": 1.0}
"""Part of nanochat's learning rates that is taken. 2025's are made for a batch two thousand times as large: a tenth of
them lifts bfloat16's rounding to 9e-4 in the mean loss of 40 steps, outside its gate. 2026's follow the batch."""
SMEAR_LR = 0.2 / 32
"""Of smear and backout, whose 0.2 follows no batch: divided by what all others are. At 0.2 the steps are as large as
the values, and lift float32's rounding to 7e-5 in 200 steps."""
NANOCHAT_DECAY = 0.1
"""Of 2026. Cautious decay asks for a sign: where rounding turns it, one weight is off by rate x decay x itself. By the
0.6 that the rule gives so small a model these add up to 1e-5 in 200 steps, ten times what all other rounding does."""

BOS, BLOCK = VOCAB - 1, 2
"""modded-nanogpt's token that begins a document, and the tokens of a block of its windows."""
ROW_LENS = (16, 32, 48)
"""By thirds of a record's run."""
N_STEPS_OF_SPLIT = 2 / 3
"""Part of a run after which record 62's embedding and head are two."""
MODDED_LR = 0.1
"""Part of the learning rates of modded-nanogpt's records that is taken. They are made for a batch a thousand times as
large: all of them lift float32's rounding to 6e-4 in the momentum of 60 steps, losses to 2e-6 alone."""


def make_config(recipe: str, n_steps: int, dtype: str, *, is_small: bool = False) -> Config:
    """A recipe's config, settled.

    Args:
      is_small: fewest layers that show all of it, for mutants, each of which is compiled anew.
    """
    by_recipe = {"nanochat2025": _make_nanochat, "nanochat2026": _make_nanochat, "track3": _make_track3}
    make = by_recipe.get(recipe, _make_record if recipe in MODDED_RECIPES else _make_gpt2)
    config = make(recipe, n_steps, is_small)
    return settle(config, n_steps, dtype, VOCAB)


def _make_gpt2(algorithm: Any, n_steps: int, is_small: bool) -> Config:
    """Biases, clipping, decay, warm-up of learning rate and momentum, two microbatches, two chunks of the loss."""
    return Config(
        model=GPT2Config(seq_len=SEQ_LEN, n_layer=1 if is_small else 2, n_head=2, n_embd=32, bias=True),
        train=TrainConfig(steps=n_steps, batch_tokens=N_ROWS * SEQ_LEN, micro_batch_size=4, loss_chunk_tokens=64),
        optim=OptimConfig(
            algorithm=algorithm, lr=1e-3, grad_clip=CLIP, schedule=ScheduleConfig(warmup_steps=min(20, n_steps // 4)),
            muon=MuonConfig(lr=MUON_LR, momentum_warmup_steps=10, weight_decay=0.1),
        ),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip


def _make_nanochat(recipe: str, n_steps: int, is_small: bool) -> Config:
    """nanochat's optimizer on a small model with every part of the era: two kinds of window, gates, lambdas."""
    era: Any = recipe.removeprefix("nanochat")
    optim = {"2025": NANOCHAT_2025, "2026": NANOCHAT_2026}[era]
    part = NANOCHAT_LR[era]
    muon = dataclasses.replace(optim.muon, lr=part * optim.muon.lr, momentum_warmup_steps=n_steps // 4)
    if era == "2026":
        muon = dataclasses.replace(muon, weight_decay=NANOCHAT_DECAY, decay_follows_horizon=False)
    groups = tuple(
        dataclasses.replace(group, lr=SMEAR_LR if group.name == "smear" else part * (group.lr or 0))
        for group in optim.groups
    )
    schedule = dataclasses.replace(optim.schedule, warmup_steps=min(optim.schedule.warmup_steps, n_steps // 4))
    return Config(
        model=NanochatConfig(
            era=era, depth=3 if is_small else 4, head_dim=16, n_embd=32, seq_len=SEQ_LEN, short_window=9,
            window_pattern="SL" if is_small and era == "2026" else "",
        ),
        train=TrainConfig(steps=n_steps, batch_tokens=N_ROWS * SEQ_LEN, micro_batch_size=4, loss_chunk_tokens=64),
        optim=dataclasses.replace(
            optim, grad_clip=min(optim.grad_clip, CLIP), schedule=schedule, muon=muon, groups=groups
        ),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip


def _make_record(recipe: str, n_steps: int, is_small: bool) -> Config:
    """modded-nanogpt's records 62 and 46 in four layers that have every part, the third without attention.

    Six heads, since an odd number of pairs tells a head's rotation from its row. A small one has one stage, in which
    YaRN has changed the rotation already.
    """
    record: Any = recipe.removeprefix("modded")
    is_62 = record == "62"
    optim, scheduled = MODDED_62 if is_62 else MODDED_46, round(0.9 * n_steps)
    muon = dataclasses.replace(
        optim.muon,
        lr=MODDED_LR * optim.muon.lr,
        ns_dtype="float32",
        momentum_warmup_steps=n_steps // 4,
        momentum_cooldown_steps=n_steps // 4,
    )
    groups = tuple(
        dataclasses.replace(group, lr=None if group.lr is None else MODDED_LR * group.lr) for group in optim.groups
    )
    tie_until = 2 * round(N_STEPS_OF_SPLIT * n_steps / 2) if is_62 else 0
    stages = () if is_small else speedrun_stages(
        scheduled_steps=scheduled, windows=((3, 7), (5, 11), (6, 13)), block_tokens=BLOCK, n_rows=N_ROWS,
        batch_tokens=(N_ROWS * ROW_LENS[0], N_ROWS * ROW_LENS[1], N_ROWS * ROW_LENS[2]), lr_from=(1 / 3, 2 / 3),
        lr_scales=(1.52, 1.73), target_weights=((1.0, 0.5), (1.0,)) if is_62 else (),
    )  # fmt: skip
    row_len = ROW_LENS[1 if is_small else 0]
    return Config(
        model=ModdedConfig(
            record=record, vocab_size=VOCAB, bos_id=BOS, n_layer=4, n_embd=48, head_dim=8, seq_len=row_len,
            window_pattern="SL-S", paired_heads="P---" if is_62 else "----", value_embeds="12-0", skip_from=1,
            skip_to=2, backout_from=2, block_tokens=BLOCK, yarn=((1, 3),) if is_small else (),
        ),
        train=TrainConfig(
            steps=n_steps, batch_tokens=N_ROWS * row_len, micro_batch_size=4, loss_chunk_tokens=64,
            target_weights=(1.0, 0.5, 0.25) if is_62 else (1.0,), stages=stages,
        ),
        optim=dataclasses.replace(
            optim, muon=muon, groups=groups, tie_until=tie_until,
            adam=dataclasses.replace(optim.adam, lr=MODDED_LR * optim.adam.lr),
            schedule=dataclasses.replace(optim.schedule, decay_steps=scheduled),
        ),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip


def _make_track3(_: str, n_steps: int, is_small: bool) -> Config:
    """modded-nanogpt's track 3: biases, gains, dense causal attention, torch's AdamW beside Muon."""
    n_layer = 1 if is_small else 2
    return Config(
        model=ModdedConfig(
            record="track3", vocab_size=VOCAB, bos_id=BOS, n_layer=n_layer, n_embd=32, head_dim=16, seq_len=SEQ_LEN,
            paired_heads="-" * n_layer, value_embeds="-" * n_layer,
        ),
        train=TrainConfig(steps=n_steps, batch_tokens=N_ROWS * SEQ_LEN, micro_batch_size=4, loss_chunk_tokens=64),
        optim=dataclasses.replace(MODDED_TRACK3, muon=dataclasses.replace(MODDED_TRACK3.muon, ns_dtype="float32")),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip


def batches_of(config: Config, n_steps: int) -> list[Batch]:
    """The batches of a run of this config, each as long as its stage has it."""
    if config.model.family != "modded":
        return make_batches(n_steps)
    row_lens = [config.at_stage(schedule.stage_index(config, step)).model.seq_len for step in range(n_steps)]
    batches = make_batches(n_steps, max(row_lens))
    rng = np.random.default_rng(1)
    return [
        Batch(_begin_documents(batch.tokens[..., : length + 1], rng))
        for batch, length in zip(batches, row_lens, strict=True)
    ]


def _begin_documents(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of packed documents of eight tokens or so; the second has none but its BOS."""
    is_first = rng.random(tokens.shape) < 1 / 8
    is_first[..., [0, 5, 6]] = True
    return np.where(is_first, BOS, tokens % BOS).astype(np.int32)


def make_batches(n_steps: int, seq_len: int = SEQ_LEN) -> list[Batch]:
    """[M, B, T + 1] per step: a Markov chain with four likely successors per token, so that there is much to learn."""
    n_micro = 2
    rng = np.random.default_rng(0)
    successors = rng.integers(0, VOCAB, (VOCAB, 4))
    n = n_steps * N_ROWS
    columns = [rng.integers(0, VOCAB, n)]
    for _ in range(seq_len):
        likely = successors[columns[-1], rng.integers(0, 4, n)]
        columns.append(np.where(rng.random(n) < 0.1, rng.integers(0, VOCAB, n), likely))
    rows = np.stack(columns, axis=1).astype(np.int32)
    return [Batch(tokens) for tokens in rows.reshape(n_steps, n_micro, N_ROWS // n_micro, seq_len + 1)]
