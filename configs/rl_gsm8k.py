"""nanochat 2025, depth 20: reinforcement learning on GSM8K.

Starts from sft_d20_2025. 16 answers to each of 16 questions a step, with the calculator, rewarded where the number is
right: 131,072 tokens = 4 x 8 rows x 512 x 8 devices. 467 steps are an epoch; pass@k on 400 problems of the test.
Machine: 8 H100
Time: 43 min (nanochat)
Data: jaxgpt prepare rl_gsm8k --mixture rl_gsm8k
Run: jaxgpt rl --config rl_gsm8k --from runs/sft_d20_2025
"""

from jaxgpt.config import nanochat_rl

config = nanochat_rl(depth=20, micro_batch_size=8)
