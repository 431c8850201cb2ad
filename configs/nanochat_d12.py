"""nanochat 2026, depth 12.

Model: value embeddings, short windows, smear, backout: 286,261,730 parameters. Depth 12 is where nanochat is tuned.
Batch, learning rates, weight decay and horizon follow from the depth: 524,288 tokens = 16 x 16 rows x 2048, and 2,520
steps: 1.32 billion tokens, 12 for each parameter of blocks and head. 1.0e18 FLOPs, or 42 minutes at 40 % of an H100.
Memory: 16.6 GiB, as XLA compiles this step for an H100; 17.2 GiB for an RTX 4090, of which JAX takes 17.7 GiB. An L4
needs XLA_CLIENT_MEM_FRACTION=0.94.
Machine: one card, 24 GB
Data: jaxgpt prepare climbmix --shards 32, then
    jaxgpt train_tokenizer --data data/climbmix --vocab-size 32768
Run: jaxgpt train --config nanochat_d12
"""

from jaxgpt.config import nanochat_2026

config = nanochat_2026(depth=12, seq_len=2048, micro_batch_size=16)
