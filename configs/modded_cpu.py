"""modded-nanogpt's record 62 in small: stages, growing windows, the split.

Machine: any CPU
Vocabulary: 257
Loss: 2.06 bits per byte
Time: 5 min on 2 cores
Data: jaxgpt prepare pydocs --format modded --tokenizer byte
Run: jaxgpt train --config modded_cpu
"""

import dataclasses

from jaxgpt.config import (
    MODDED_62,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModdedConfig,
    SampleConfig,
    TrainConfig,
    speedrun_stages,
)

SCHEDULED = 300
TOKENS = (8 * 128, 8 * 256, 8 * 384)
muon = dataclasses.replace(MODDED_62.muon, momentum_warmup_steps=60, momentum_cooldown_steps=10, ns_dtype="float32")
schedule = dataclasses.replace(MODDED_62.schedule, decay_steps=SCHEDULED)

config = Config(
    model=ModdedConfig(record="62", n_embd=128, head_dim=32, seq_len=TOKENS[0] // 8, block_tokens=16),
    data=DataConfig(dir="data/pydocs_modded", sampling="bos_aligned", max_document_tokens=384, epochs=0),
    train=TrainConfig(
        steps=SCHEDULED + 20, batch_tokens=TOKENS[0], micro_batch_size=4, dtype="float32",
        target_weights=(1.0, 0.5, 0.25),
        stages=speedrun_stages(
            scheduled_steps=SCHEDULED, batch_tokens=TOKENS, windows=((3, 7), (5, 11), (6, 13)), block_tokens=16,
            lr_from=(1 / 3, 2 / 3), lr_scales=(1.52, 1.73), target_weights=((1.0, 0.5), (1.0,)),
        ),
    ),
    optim=dataclasses.replace(MODDED_62, muon=muon, schedule=schedule, tie_until=202),
    eval=EvalConfig(every=50, tokens=40_000, seq_len=384, long_window=20 * 16 + 1),
    log=LogConfig(every=5),
    checkpoint=CheckpointConfig(every=100),
    sample=SampleConfig(every=0),
)  # fmt: skip
