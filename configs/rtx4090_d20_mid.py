"""nanochat 2025, depth 20, context 1024: midtraining.

Starts from rtx4090_d20; as mid_d20_2025, in 128 x 4 rows x 1024.
Machine: one RTX 4090
Data: jaxgpt prepare mid_2025 --mixture mid_2025 --input own=conversations.jsonl
Run: jaxgpt sft --config rtx4090_d20_mid --from runs/rtx4090_d20
"""

from jaxgpt.config import nanochat_mid_2025

config = nanochat_mid_2025(depth=20, seq_len=1024, micro_batch_size=4)
