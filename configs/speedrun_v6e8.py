"""modded-nanogpt's record 62 on a host of eight TPUs.

Model: 11 layers x 768, rows of packed documents: 461,833,354 parameters, most of them in tables.
Batch: 8, 16 and 24 rows of 16,384 tokens by thirds of 1,560 steps, then 40 more. 424,673,280 tokens.
Loss by step (modded-nanogpt, 6 runs): 0: 10.830, 250: 4.587, 500: 4.241, 750: 3.898, 1000: 3.597, 1250: 3.416,
1500: 3.307, 1600: 3.278.
Flash attention on TPUs takes rows of at most 16,384 tokens: where the record's rows are two or three times as long,
there are two or three times as many. Evaluations take rows of 65,536 tokens in place of 262,144.
Machine: 8 v6e
Loss: 3.278 (modded-nanogpt)
Data: jaxgpt prepare fineweb10B --shards 9
Run: jaxgpt train --config speedrun_v6e8
"""

from jaxgpt.config import speedrun_62

config = speedrun_62(row_tokens=16_384, eval_seq_len=65_536)
