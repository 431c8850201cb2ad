"""nanochat 2025, depth 14, context 1536.

Model: nanochat of November 2025, depth 14: 252,313,600 parameters.
Batch: 264,192 tokens = 43 x 4 rows x 1536. Steps: 19,100, 5.05 billion tokens, 20 for each parameter.
No 262,144: that is not a multiple of 4 x 1536.
Memory: 8.84 GiB, as XLA compiles this step for an A100 40GB.
Machine: one A100 40 GB
Data: jaxgpt prepare fineweb-edu --shards 104, then
    jaxgpt train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: jaxgpt train --config a100_40gb_d14
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=14, seq_len=1536, batch_tokens=264_192, micro_batch_size=4)
