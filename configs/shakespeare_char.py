"""nanoGPT's character model on Shakespeare.

nanoGPT's train_shakespeare_char, which reports a best validation loss of 1.4697.
Machine: one GPU
Vocabulary: 65
Loss: 1.47 (nanoGPT)
Time: 3 min on an A100 (nanoGPT)
Data: jaxgpt prepare shakespeare_char
Run: jaxgpt train --config shakespeare_char
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
    data=DataConfig(dir="data/shakespeare_char"),
    model=GPT2Config(seq_len=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2),
    train=TrainConfig(steps=5000, batch_tokens=64 * 256, micro_batch_size=64, dtype="bfloat16"),
    optim=OptimConfig(lr=1e-3, beta2=0.99, schedule=ScheduleConfig(warmup_steps=100)),
    eval=EvalConfig(every=250, tokens=0),
    log=LogConfig(every=10),
    checkpoint=CheckpointConfig(every=250),
)
