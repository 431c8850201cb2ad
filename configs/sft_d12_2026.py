"""nanochat 2026, depth 12: SFT.

Starts from nanochat_d12, with its moments. SmolTalk, MMLU three times, GSM8K four times, spelling and your own
conversations, 1,071,751 in nanochat's mixture of spring 2026; the assistant's tokens are trained. Batch: 524,288 tokens
= 16 x 16 rows x 2048. 973 steps are an epoch with nanochat's vocabulary of 32,768. July 2026 left spelling and own
conversations out: --mixture sft_2026, and --train.steps=0, which counts the steps of an epoch.
Machine: one card, 24 GB
Data: jaxgpt prepare sft_2026 --mixture sft_2026_spelling --input own=conversations.jsonl
Run: jaxgpt sft --config sft_d12_2026 --from runs/nanochat_d12
"""

from jaxgpt.config import nanochat_sft_2026

config = nanochat_sft_2026(depth=12, micro_batch_size=16)
