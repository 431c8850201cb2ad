"""The model families, one file each, without JAX: everything except the math, which is in `models`."""

from jaxgpt.config.families.gpt2 import GPT2Config
from jaxgpt.config.families.modded import ModdedConfig
from jaxgpt.config.families.nanochat import NanochatConfig

ModelConfig = GPT2Config | NanochatConfig | ModdedConfig
