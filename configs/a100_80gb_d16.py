"""nanochat on one A100 with 80 GB.

Model: nanochat of November 2025, depth 16: 335,544,320 parameters.
Batch: 524,288 tokens = 32 x 8 rows x 2048. Steps: 12,800, 6.71 billion tokens, 20 for each parameter.
Memory: 17.89 GiB, as XLA compiles this step for an A100 80GB.
Machine: one A100 with 80 GB.
Data: python -m jaxgpt.prepare fineweb-edu --shards 136, then
    python -m jaxgpt.train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: python -m jaxgpt.train --config configs/a100_80gb_d16.py
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
    model=NanochatConfig(era="2025", depth=16, seq_len=2048, vocab_size=65_536),
    data=DataConfig(dir="data/fineweb-edu", sampling="stream"),
    train=TrainConfig(steps=0, batch_tokens=524_288, micro_batch_size=8),
    optim=NANOCHAT_2025,
    eval=EvalConfig(every=250, tokens=20 * 524_288),
    checkpoint=CheckpointConfig(every=1000),
    sample=SampleConfig(every=2000, prompt="The capital of France is", max_tokens=64),
)
