"""modded-nanogpt's track 3, the benchmark of optimizers: 162M, dense, Muon.

Model: 12 layers x 768, context 1024, biases, norms with gains: 162,354,816 parameters.
Batch: 524,288 tokens = 64 rows of 1024 x 8. Steps: 3,250, 1.70 billion tokens.
Loss by step (modded-nanogpt, 10 runs): 0: 10.826, 625: 3.765, 1250: 3.594, 1875: 3.476, 2500: 3.381, 3075: 3.294,
3250: 3.279.
Machine: 8 H100
Loss: 3.279 (modded-nanogpt)
Data: jaxgpt prepare fineweb10B --shards 18
Run: jaxgpt train --config track3
"""

from jaxgpt.config import (
    MODDED_TRACK3,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModdedConfig,
    SampleConfig,
    TrainConfig,
)

config = Config(
    model=ModdedConfig(record="track3", vocab_size=50_304, seq_len=1024),
    data=DataConfig(dir="data/fineweb10B", sampling="sequential"),
    train=TrainConfig(steps=3250, batch_tokens=524_288, micro_batch_size=64),
    optim=MODDED_TRACK3,
    eval=EvalConfig(every=125, tokens=20 * 524_288, spread=False),
    checkpoint=CheckpointConfig(every=1000),
    sample=SampleConfig(every=0),
)
