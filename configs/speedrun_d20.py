"""nanochat 2025, depth 20: the 100-dollar run.

Model: nanochat of November 2025, depth 20: 560,988,160 parameters.
Batch: 524,288 tokens = 1 x 32 rows x 2048 x 8 devices. Steps: 21,400, 11.22 billion tokens, 20 for each parameter.
Time and CORE are nanochat's, of the whole speedrun.
Memory: 59.9 GiB on each, as XLA compiles this step for an H100: run it with XLA_CLIENT_MEM_FRACTION=0.98.
Machine: 8 H100
Loss: CORE 0.2219 (nanochat)
Time: 3 h 51 min (nanochat)
Data: jaxgpt prepare fineweb-edu --shards 224, then
    jaxgpt train_tokenizer --data data/fineweb-edu --vocab-size 65536
Run: jaxgpt train --config speedrun_d20
"""

from jaxgpt.config import nanochat_2025

config = nanochat_2025(depth=20, seq_len=2048, batch_tokens=524_288, micro_batch_size=32)
