"""nanochat 2025, depth 20: SFT.

Starts from mid_d20_2025. ARC, GSM8K, SmolTalk, spelling and your own conversations, 22,439 in nanochat's mixture; the
assistant's tokens are trained. 32 conversations a step, each in a row of its own: 1 x 4 rows x 2048 x 8 devices. 701
steps are an epoch.
Machine: 8 H100
Time: 2.4 min (nanochat)
Data: jaxgpt prepare sft_2025 --mixture sft_2025 --input own=conversations.jsonl
Run: jaxgpt sft --config sft_d20_2025 --from runs/mid_d20_2025
"""

from jaxgpt.config import nanochat_sft_2025

config = nanochat_sft_2025(depth=20, micro_batch_size=4)
