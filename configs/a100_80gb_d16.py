"""nanochat 2025, depth 16.

Model: nanochat of November 2025, depth 16: 335,544,320 parameters.
Batch: 524,288 tokens = 32 x 8 rows x 2048. Steps: 12,800, 6.71 billion tokens, 20 for each parameter.
Memory: 17.89 GiB, as XLA compiles this step for an A100 80GB.
Machine: one A100 80 GB
Data: jaxgpt prepare fineweb-edu --shards 136, then
    jaxgpt train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: jaxgpt train --config a100_80gb_d16
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=16, seq_len=2048, batch_tokens=524_288, micro_batch_size=8)
