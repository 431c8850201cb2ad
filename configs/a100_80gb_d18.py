"""nanochat 2025, depth 18, the deepest recipe for 80 GB.

Model: nanochat of November 2025, depth 18: 437,649,408 parameters.
Batch: 524,288 tokens = 32 x 8 rows x 2048. Steps: 16,695, 8.75 billion tokens, 20 for each parameter.
Memory: 21.9 GiB, as XLA compiles this step for an A100 80GB.
Machine: one A100 80 GB
Data: jaxgpt prepare fineweb-edu --shards 176, then
    jaxgpt train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: jaxgpt train --config a100_80gb_d18
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=18, seq_len=2048, batch_tokens=524_288, micro_batch_size=8)
