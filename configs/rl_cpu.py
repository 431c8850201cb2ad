"""nanochat 2026, depth 4: reinforcement learning on sums.

Starts from sft_cpu, on conversations with sums among them (--mixture own+sums:400). 8 answers to each of 8 questions a
step, with the calculator. pass@1 on val rises from 0.52 to 0.70. 60 steps need 120 s of CPU time: 80 in the step, 20 in
the rollouts, the rest in pass@k and compilation. sums as for sft_cpu, which has 0.60.
Machine: any CPU
Vocabulary: 4096
Loss: sums 0.71
Time: 2 min on 2 cores
Data: jaxgpt prepare rl_sums --mixture rl_sums
Run: jaxgpt rl --config rl_cpu --from runs/sft_cpu
"""

from jaxgpt.config import (
    NANOCHAT_RL_2026,
    ChatConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    NanochatConfig,
    RLConfig,
    TrainConfig,
)

config = Config(
    model=NanochatConfig(era="2026", depth=4, seq_len=64),
    data=DataConfig(dir="data/rl_sums", sampling="conversations"),
    chat=ChatConfig(init_lr_frac=0.05),
    rl=RLConfig(samples=8, max_tokens=32, eval_questions=50, eval_samples=4),
    train=TrainConfig(steps=60, batch_tokens=64 * 64, micro_batch_size=16, dtype="float32", spike_window=0),
    optim=NANOCHAT_RL_2026,
    eval=EvalConfig(every=30, tokens=0),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=20, keep_best=False),
)
