"""nanochat of July 2026 at depth 12, the size at which it is tuned. On one card with 80 GB.

Model: value embeddings, short windows, smear, backout: 286,261,730 parameters.
Batch, learning rates, weight decay and horizon follow from the depth: 524,288 tokens = 16 x 16 rows x 2048, and 2,520
steps: 1.32 billion tokens, 12 for each parameter of blocks and head. 1.0e18 FLOPs, or 42 minutes at 40 % of an H100.
Memory: 16.6 GiB, as XLA compiles this step for an H100.
Machine: one card with 24 GB or more.
Data: python -m jaxgpt.prepare climbmix --shards 32, then
    python -m jaxgpt.train_tokenizer --data data/climbmix --vocab-size 32768
Run: python -m jaxgpt.train --config configs/nanochat_d12.py
"""

from jaxgpt.config import (
    NANOCHAT_2026,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    NanochatConfig,
    SampleConfig,
    TrainConfig,
)

config = Config(
    model=NanochatConfig(era="2026", depth=12, seq_len=2048, vocab_size=32_768),
    data=DataConfig(dir="data/climbmix", sampling="best_fit"),
    train=TrainConfig(steps=0, batch_tokens=0, micro_batch_size=16),
    optim=NANOCHAT_2026,
    eval=EvalConfig(every=250, tokens=80 * 524_288),
    checkpoint=CheckpointConfig(every=1000),
    sample=SampleConfig(every=2000, prompt="The capital of France is", max_tokens=64),
)
