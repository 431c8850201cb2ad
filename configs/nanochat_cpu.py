"""nanochat 2026, depth 4, English about Python, its own tokenizer.

Machine: any CPU
Vocabulary: 4096
Loss: 1.89 bits per byte
Time: 4 min on 2 cores
Data: jaxgpt prepare pydocs --format text, then
    jaxgpt train_tokenizer --data data/pydocs_text --vocab-size 4096
Run: jaxgpt train --config nanochat_cpu
"""

from jaxgpt.config import (
    NANOCHAT_2026,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    NanochatConfig,
    SampleConfig,
    TrainConfig,
)

config = Config(
    model=NanochatConfig(era="2026", depth=4, seq_len=256),
    data=DataConfig(dir="data/pydocs_text", sampling="best_fit", tokenizer_threads=2),
    train=TrainConfig(steps=300, batch_tokens=8 * 256, micro_batch_size=8, dtype="float32"),
    optim=NANOCHAT_2026,
    eval=EvalConfig(every=50, tokens=20_000),
    log=LogConfig(every=5),
    checkpoint=CheckpointConfig(every=100),
    sample=SampleConfig(every=100, prompt="Return the number of", max_tokens=48, temperature=0.8),
)
