"""GPT-2 124M on OpenWebText, from scratch.

nanoGPT's train_gpt2. Any GPU or TPU will do: on one the same batch is accumulated; on 8, add --mesh.data=8 or
--mesh.fsdp=8.
Machine: 8 A100
Loss: 2.85 (nanoGPT)
Time: 4 to 5 days (nanoGPT)
Data: jaxgpt prepare openwebtext
Run: jaxgpt train --config gpt2_124m
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
    data=DataConfig(dir="data/openwebtext"),
    model=GPT2Config(vocab_size=50304, seq_len=1024, n_layer=12, n_head=12, n_embd=768),
    train=TrainConfig(steps=600_000, batch_tokens=40 * 12 * 1024, micro_batch_size=12),
    optim=OptimConfig(lr=6e-4, beta2=0.95, weight_decay=0.1, schedule=ScheduleConfig(warmup_steps=2000)),
    eval=EvalConfig(every=1000, tokens=200 * 12 * 1024),
    log=LogConfig(every=10),
    checkpoint=CheckpointConfig(every=1000),
)
