"""nanochat 2026, depth 4: SFT on your conversations.

Starts from mid_cpu, or from nanochat_cpu, with its moments. The assistant's tokens are trained.
Answers are learned by heart: the training loss ends at 0.006, bits per byte on other answers at 2.40. 80 steps need
85 s of CPU time, compilation among them. sums is the share of sums-test that is right (jaxgpt evaluate --tasks).
Machine: any CPU
Vocabulary: 4096
Loss: sums 0.60
Time: 2 min on 2 cores
Data: jaxgpt prepare chat --input FILES
Run: jaxgpt sft --config sft_cpu --from runs/mid_cpu
"""

from jaxgpt.config import (
    NANOCHAT_SFT_2026,
    ChatConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    NanochatConfig,
    TrainConfig,
)

config = Config(
    model=NanochatConfig(era="2026", depth=4, seq_len=256),
    data=DataConfig(dir="data/chat", sampling="conversations"),
    chat=ChatConfig(packing="best_fit", optimizer="base", init_lr_frac=0.8),
    train=TrainConfig(steps=80, batch_tokens=8 * 256, micro_batch_size=8, dtype="float32"),
    optim=NANOCHAT_SFT_2026,
    eval=EvalConfig(every=40, tokens=20_000),
    log=LogConfig(every=5),
    checkpoint=CheckpointConfig(every=40),
)
