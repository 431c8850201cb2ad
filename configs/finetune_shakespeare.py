"""GPT-2 XL, fine-tuned on Shakespeare.

nanoGPT's finetune_shakespeare, 20 steps of 32,768 tokens. 1.56B parameters with AdamW; --train.init_from=gpt2 with
--model.n_layer=12 --model.n_head=12 --model.n_embd=768 for a small one.
GELU: erf, because nanoGPT computes it with OpenAI's weights too; these were trained with tanh, and --model.gelu=tanh
keeps that. The run prints one line about the difference. Evaluating and sampling --model gpt2-xl use tanh.
Machine: one large GPU
Data: jaxgpt prepare shakespeare
Run: jaxgpt train --config finetune_shakespeare
"""

from jaxgpt.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    LogConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(dir="data/shakespeare"),
    model=GPT2Config(vocab_size=50257, seq_len=1024, n_layer=48, n_head=25, n_embd=1600, bias=True, gelu="erf"),
    train=TrainConfig(steps=20, batch_tokens=32 * 1024, micro_batch_size=1, init_from="gpt2-xl", remat="block"),
    optim=OptimConfig(lr=3e-5, schedule=ScheduleConfig(kind="constant")),
    eval=EvalConfig(every=5, tokens=40 * 1024),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=0),
)
