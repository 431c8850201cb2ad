"""nanochat 2026, depth 4: midtraining on your conversations.

Starts from nanochat_cpu, with its moments. Conversations as one stream, every token trained.
60 steps need 65 s of CPU time, compilation among them.
Machine: any CPU
Vocabulary: 4096
Loss: 1.96 bits per byte
Time: 1 min on 2 cores
Data: jaxgpt prepare chat --input FILES
Run: jaxgpt sft --config mid_cpu --from runs/nanochat_cpu
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
    chat=ChatConfig(packing="stream", trained="all", optimizer="base"),
    train=TrainConfig(steps=60, batch_tokens=8 * 256, micro_batch_size=8, dtype="float32"),
    optim=NANOCHAT_SFT_2026,
    eval=EvalConfig(every=50, tokens=20_000),
    log=LogConfig(every=5),
    checkpoint=CheckpointConfig(every=100),
)
