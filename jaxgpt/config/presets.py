"""nanochat's settings by era: its optimizer, and whole runs that differ in depth, context and batch only.

A config file calls one of the functions, or uses one of the optimizers and sets the rest itself.
"""

import dataclasses

from jaxgpt.config.chat import ChatConfig
from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.optimizer import GroupConfig, MuonConfig, OptimConfig, ScheduleConfig
from jaxgpt.config.rl import RLConfig
from jaxgpt.config.settings import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    SampleConfig,
    TrainConfig,
)

NANOCHAT_2025 = OptimConfig(
    algorithm="muon",
    lr=0.004,
    beta1=0.8,
    beta2=0.95,
    eps=1e-10,
    weight_decay=0.0,
    grad_clip=1.0,
    schedule=ScheduleConfig(kind="trapezoid", min_lr_frac=0.0, warmdown_frac=0.2),
    muon=MuonConfig(lr=0.02, momentum=0.95, momentum_start=0.85, momentum_warmup_steps=300, ns_dtype="auto"),
    groups=(
        GroupConfig(name="lm_head", match=r"^lm_head\.", lr=0.004, lr_follows_width=True),
        GroupConfig(name="wte", match=r"^wte\.", lr=0.2, lr_follows_width=True),
    ),
)
"""nanochat of November 2025 (commit c6abcdf): AdamW for embedding and head, Muon for the blocks, no decay."""

NANOCHAT_2026 = OptimConfig(
    algorithm="muon",
    lr=0.004,
    beta1=0.8,
    beta2=0.95,
    eps=1e-10,
    weight_decay=0.0,
    grad_clip=0.0,
    schedule=ScheduleConfig(kind="trapezoid", warmup_steps=40, min_lr_frac=0.05, warmdown_frac=0.65),
    muon=MuonConfig(
        lr=0.02,
        lr_follows_batch=True,
        momentum=0.97,
        momentum_start=0.85,
        momentum_warmup_steps=400,
        momentum_end=0.90,
        orthogonalizer="polar_express",
        ns_dtype="auto",
        equilibrate_rows=True,
        renormalize=True,
        norm_beta2=0.9,
        weight_decay=0.28,
        decay_follows_horizon=True,
        decay_schedule="cosine",
        cautious=True,
    ),
    groups=(
        GroupConfig(
            name="lm_head", match=r"^lm_head\.", lr=0.008, beta2=0.96, weight_decay=0.01,
            lr_follows_width=True, lr_follows_batch=True,
        ),
        GroupConfig(
            name="wte", match=r"^wte\.", lr=0.3, beta2=0.995, weight_decay=0.001,
            lr_follows_width=True, lr_follows_batch=True,
        ),
        GroupConfig(
            name="value_embeds", match=r"^value_embeds\.", lr=0.15, beta2=0.995, weight_decay=0.01,
            lr_follows_width=True, lr_follows_batch=True,
        ),
        GroupConfig(
            name="resid_lambdas", match=r"^resid_lambdas$", lr=0.005, weight_decay=0.05, lr_follows_batch=True
        ),
        GroupConfig(name="x0_lambdas", match=r"^x0_lambdas$", lr=0.5, beta1=0.96, lr_follows_batch=True),
        GroupConfig(name="smear", match=r"^(smear|backout)_", lr=0.2),
    ),
)  # fmt: skip
"""nanochat of July 2026 (commit 92d63d4): MuonAdamW with a learning rate for each kind of parameter, no clipping."""

NANOCHAT_MID_2025 = dataclasses.replace(NANOCHAT_2025, grad_clip=0.0)
"""Its midtraining: as the base's, without clipping."""

NANOCHAT_SFT_2025 = dataclasses.replace(
    NANOCHAT_MID_2025, schedule=ScheduleConfig(kind="trapezoid", min_lr_frac=0.0, warmdown_frac=1.0)
)
"""Its SFT: down from the first step to the last. nanochat takes a fiftieth of all rates: chat.init_lr_frac."""

NANOCHAT_RL_2025 = dataclasses.replace(
    NANOCHAT_SFT_2025, muon=dataclasses.replace(NANOCHAT_SFT_2025.muon, momentum_warmup_steps=0)
)
"""Its reinforcement learning: down from the first step to the last, with Muon's momentum the same throughout. nanochat
takes a twentieth of all rates: chat.init_lr_frac."""

NANOCHAT_SFT_2026 = dataclasses.replace(
    NANOCHAT_2026,
    schedule=ScheduleConfig(kind="trapezoid", min_lr_frac=0.0, warmdown_frac=0.5),
    muon=dataclasses.replace(
        NANOCHAT_2026.muon, lr_follows_batch=False, momentum=0.95, momentum_warmup_steps=300, momentum_end=-1.0,
        weight_decay=0.0, decay_follows_horizon=False,
    ),
    groups=tuple(dataclasses.replace(group, lr_follows_batch=False) for group in NANOCHAT_2026.groups),
)  # fmt: skip
"""SFT of July 2026: the base's betas and AdamW decay, no decay by Muon, rates that do not follow the batch."""

_RL_RATES = {"lm_head": 0.004, "wte": 0.2, "value_embeds": 0.1}
NANOCHAT_RL_2026 = dataclasses.replace(
    NANOCHAT_SFT_2026,
    schedule=NANOCHAT_SFT_2025.schedule,
    muon=dataclasses.replace(NANOCHAT_SFT_2026.muon, momentum_warmup_steps=0),
    groups=tuple(
        dataclasses.replace(group, lr=_RL_RATES.get(group.name, group.lr), weight_decay=0.0)
        for group in NANOCHAT_SFT_2026.groups
    ),
)
"""The same of July 2026, on the optimizer of that year: nothing decays."""

_SAMPLE = SampleConfig(every=2000, prompt="The capital of France is", max_tokens=64)


def nanochat_2025(*, depth: int, seq_len: int, batch_tokens: int, micro_batch_size: int) -> Config:
    """A run of November 2025 on fineweb-edu: 20 tokens for each parameter, a vocabulary of 65,536."""
    return Config(
        model=NanochatConfig(era="2025", depth=depth, seq_len=seq_len, vocab_size=65_536),
        data=DataConfig(dir="data/fineweb-edu", sampling="stream"),
        train=TrainConfig(steps=0, batch_tokens=batch_tokens, micro_batch_size=micro_batch_size),
        optim=NANOCHAT_2025,
        eval=EvalConfig(every=250, tokens=20 * 524_288),
        checkpoint=CheckpointConfig(every=1000),
        sample=_SAMPLE,
    )


def nanochat_2026(*, depth: int, seq_len: int, micro_batch_size: int) -> Config:
    """A run of July 2026 on ClimbMix: batch and horizon follow from the depth, a vocabulary of 32,768."""
    return Config(
        model=NanochatConfig(era="2026", depth=depth, seq_len=seq_len, vocab_size=32_768),
        data=DataConfig(dir="data/climbmix", sampling="best_fit"),
        train=TrainConfig(steps=0, batch_tokens=0, micro_batch_size=micro_batch_size),
        optim=NANOCHAT_2026,
        eval=EvalConfig(every=250, tokens=80 * 524_288),
        checkpoint=CheckpointConfig(every=1000),
        sample=_SAMPLE,
    )


def nanochat_mid_2025(*, depth: int, seq_len: int, micro_batch_size: int) -> Config:
    """Midtraining of November 2025: an epoch of its mixture as one stream, every token trained."""
    return Config(
        model=NanochatConfig(era="2025", depth=depth, seq_len=seq_len, vocab_size=65_536),
        data=DataConfig(dir="data/mid_2025", sampling="conversations"),
        chat=ChatConfig(packing="stream", trained="all", max_tokens=2048),
        train=TrainConfig(steps=809, batch_tokens=524_288, micro_batch_size=micro_batch_size),
        optim=NANOCHAT_MID_2025,
        eval=EvalConfig(every=150, tokens=20 * 524_288),
        checkpoint=CheckpointConfig(every=200),
    )


def nanochat_sft_2025(*, depth: int, micro_batch_size: int) -> Config:
    """SFT of November 2025: an epoch of its mixture, 32 conversations a step, each in a row of its own."""
    return Config(
        model=NanochatConfig(era="2025", depth=depth, seq_len=2048, vocab_size=65_536),
        data=DataConfig(dir="data/sft_2025", sampling="conversations"),
        chat=ChatConfig(packing="rows", init_lr_frac=0.02),
        train=TrainConfig(steps=701, batch_tokens=32 * 2048, micro_batch_size=micro_batch_size),
        optim=NANOCHAT_SFT_2025,
        eval=EvalConfig(every=100, tokens=400 * 2048),
        checkpoint=CheckpointConfig(every=200),
    )


def nanochat_sft_2026(*, depth: int, micro_batch_size: int) -> Config:
    """SFT of 2026: rows of whole conversations, the base's moments, from four fifths of its rates down to 0."""
    return Config(
        model=NanochatConfig(era="2026", depth=depth, seq_len=2048, vocab_size=32_768),
        data=DataConfig(dir="data/sft_2026", sampling="conversations"),
        chat=ChatConfig(packing="best_fit", init_lr_frac=0.8, optimizer="base"),
        train=TrainConfig(steps=973, batch_tokens=524_288, micro_batch_size=micro_batch_size),
        optim=NANOCHAT_SFT_2026,
        eval=EvalConfig(every=200, tokens=40 * 524_288),
        checkpoint=CheckpointConfig(every=200),
    )


def nanochat_rl(*, depth: int, micro_batch_size: int) -> Config:
    """Reinforcement learning on GSM8K, both eras: an epoch, 16 answers to each of 16 questions a step.

    Rows of 512 tokens hold GSM8K's questions and 256 tokens of answer; a question that is longer is left out.
    """
    return Config(
        model=NanochatConfig(era="2025", depth=depth, seq_len=512, vocab_size=65_536),
        data=DataConfig(dir="data/rl_gsm8k", sampling="conversations"),
        chat=ChatConfig(init_lr_frac=0.05),
        rl=RLConfig(samples=16),
        train=TrainConfig(steps=467, batch_tokens=256 * 512, micro_batch_size=micro_batch_size, spike_window=0),
        optim=NANOCHAT_RL_2025,
        eval=EvalConfig(every=60, tokens=0),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=60, keep_best=False),
    )
