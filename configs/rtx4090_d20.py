"""nanochat's speedrun model on one RTX 4090.

Model: nanochat of November 2025, depth 20: 560,988,160 parameters.
Batch: 524,288 tokens = 128 x 4 rows x 1024. Steps: 21,400, 11.22 billion tokens, 20 for each parameter.
nanochat's own run on this card: 13.78 s per step, 38 thousand tokens/s (its issue 157), some 80 hours.
Memory: 13.3 GiB, as XLA compiles this step for an RTX 4090.
Machine: one RTX 4090.
Data: python -m jaxgpt.prepare fineweb-edu --shards 224, then
    python -m jaxgpt.train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: python -m jaxgpt.train --config configs/rtx4090_d20.py
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=20, seq_len=1024, batch_tokens=524_288, micro_batch_size=4)
