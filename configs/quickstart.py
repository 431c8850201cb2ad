"""A character model on English about Python, with Muon.

The default of `make train`. Took 3.6 minutes on 2 cores that other jobs shared.
Machine: any CPU
Vocabulary: 96
Loss: 1.43
Time: 4 min on 2 cores
Data: jaxgpt prepare pydocs
Run: jaxgpt train --config quickstart
"""

from jaxgpt.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    LogConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(dir="data/pydocs"),
    model=GPT2Config(seq_len=128, n_layer=4, n_head=4, n_embd=128),
    train=TrainConfig(steps=1000, batch_tokens=12 * 128, micro_batch_size=12, dtype="float32"),
    optim=OptimConfig(
        algorithm="muon",
        lr=2e-3,
        beta2=0.99,
        schedule=ScheduleConfig(kind="trapezoid", warmup_steps=50, min_lr_frac=0.0),
    ),
    eval=EvalConfig(every=200, tokens=50_000),
    log=LogConfig(every=10),
    checkpoint=CheckpointConfig(every=500),
)
