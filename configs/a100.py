"""nanochat on one A100 with 40 GB.

Model: nanochat of November 2025, depth 12: 185,597,952 parameters.
Batch: 131,072 tokens = 32 x 4 rows x 1024. Steps: 28,320, 3.71 billion tokens, 20 for each parameter.
Memory: 5.74 GiB, as XLA compiles this step for an A100 40GB.
Machine: one A100 with 40 GB.
Data: python -m jaxgpt.prepare fineweb-edu --shards 80, then
    python -m jaxgpt.train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: python -m jaxgpt.train --config configs/a100.py
"""

from jaxgpt.config import (
    NANOCHAT_2025,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    NanochatConfig,
    SampleConfig,
    TrainConfig,
)

config = Config(
    model=NanochatConfig(era="2025", depth=12, seq_len=1024, vocab_size=65_536),
    data=DataConfig(dir="data/fineweb-edu", sampling="stream"),
    train=TrainConfig(steps=0, batch_tokens=131_072, micro_batch_size=4),
    optim=NANOCHAT_2025,
    eval=EvalConfig(every=250, tokens=20 * 524_288),
    checkpoint=CheckpointConfig(every=1000),
    sample=SampleConfig(every=2000, prompt="The capital of France is", max_tokens=64),
)
