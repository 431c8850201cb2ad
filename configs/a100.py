"""nanochat 2025, depth 12.

Model: nanochat of November 2025, depth 12: 185,597,952 parameters.
Batch: 131,072 tokens = 32 x 4 rows x 1024. Steps: 28,320, 3.71 billion tokens, 20 for each parameter.
Memory: 5.74 GiB, as XLA compiles this step for an A100 40GB.
Machine: one A100 40 GB
Data: jaxgpt prepare fineweb-edu --shards 80, then
    jaxgpt train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: jaxgpt train --config a100
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=12, seq_len=1024, batch_tokens=131_072, micro_batch_size=4)
