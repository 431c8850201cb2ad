"""The model families: each has one file here, without JAX, and one in `models` with the math."""

from dataclasses import replace

from jaxgpt.config.families.gpt2 import GPT2Config
from jaxgpt.config.families.nanochat import NanochatConfig

ModelConfig = GPT2Config | NanochatConfig


def without_dropout(model: ModelConfig) -> ModelConfig:
    """The same model, as it is evaluated."""
    return replace(model, dropout=0.0) if isinstance(model, GPT2Config) else model
