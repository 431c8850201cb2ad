"""The model families. Each has one file here, without JAX, which knows all but the math; `models` has the math."""

from jaxgpt.config.families.gpt2 import GPT2Config
from jaxgpt.config.families.nanochat import NanochatConfig

ModelConfig = GPT2Config | NanochatConfig
