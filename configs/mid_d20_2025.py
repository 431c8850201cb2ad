"""nanochat 2025, depth 20: midtraining.

Starts from speedrun_d20. SmolTalk, MMLU, GSM8K, spelling and your own conversations, 849,648 in nanochat's mixture,
every token trained. Batch: 524,288 tokens = 1 x 32 rows x 2048 x 8 devices. 809 steps are an epoch with nanochat's
vocabulary of 65,536; --train.steps=0 counts yours.
Machine: 8 H100
Time: 10 min (nanochat)
Data: jaxgpt prepare mid_2025 --mixture mid_2025 --input own=conversations.jsonl
Run: jaxgpt sft --config mid_d20_2025 --from runs/speedrun_d20
"""

from jaxgpt.config import nanochat_mid_2025

config = nanochat_mid_2025(depth=20, seq_len=2048, micro_batch_size=32)
