"""nanochat 2025, depth 20, context 1024.

Model: nanochat of November 2025, depth 20: 560,988,160 parameters, as in nanochat's speedrun.
Batch: 524,288 tokens = 128 x 4 rows x 1024. Steps: 21,400, 11.22 billion tokens, 20 for each parameter.
nanochat's own run on this card: 13.78 s per step, 38 thousand tokens/s (its issue 157).
Memory: 13.3 GiB, as XLA compiles this step for an RTX 4090.
Machine: one RTX 4090
Time: 80 h (nanochat)
Data: jaxgpt prepare fineweb-edu --shards 224, then
    jaxgpt train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: jaxgpt train --config rtx4090_d20
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=20, seq_len=1024, batch_tokens=524_288, micro_batch_size=4)
