"""OpenAI's GPT-2 124M, evaluated on OpenWebText.

nanoGPT's eval_gpt2: 500 batches of 8 x 1024 tokens. nanoGPT reports a loss of 3.11 on train and 3.12 on val.
Machine: any
Loss: 3.12 (nanoGPT)
GELU: tanh, with which OpenAI trained these weights; nanoGPT evaluates them with erf.
Data: jaxgpt prepare openwebtext
Run: jaxgpt evaluate --config eval_gpt2 --split both
The larger ones: --model gpt2-medium, gpt2-large or gpt2-xl instead of the config's weights.
"""

from jaxgpt.config import Config, DataConfig, EvalConfig, GPT2Config, TrainConfig

config = Config(
    data=DataConfig(dir="data/openwebtext"),
    model=GPT2Config(vocab_size=50257, seq_len=1024, n_layer=12, n_head=12, n_embd=768, bias=True, gelu="tanh"),
    train=TrainConfig(init_from="gpt2", batch_tokens=8 * 1024, micro_batch_size=8),
    eval=EvalConfig(tokens=500 * 8 * 1024),
)
