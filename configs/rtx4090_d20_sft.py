"""nanochat 2025, depth 20: SFT in rows of 2048 by two.

Starts from rtx4090_d20_mid; as sft_d20_2025, in 16 x 2 rows x 2048. Rotary positions reach past the 1024 of the base.
Machine: one RTX 4090
Data: jaxgpt prepare sft_2025 --mixture sft_2025 --input own=conversations.jsonl
Run: jaxgpt sft --config rtx4090_d20_sft --from runs/rtx4090_d20_mid
"""

from jaxgpt.config import nanochat_sft_2025

config = nanochat_sft_2025(depth=20, micro_batch_size=2)
