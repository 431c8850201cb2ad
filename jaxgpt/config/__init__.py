"""What a run is, and what follows from it by arithmetic. A config file imports its dataclasses from here."""

from jaxgpt.config.chat import ChatConfig
from jaxgpt.config.data import DataConfig
from jaxgpt.config.families import GPT2Config, ModdedConfig, ModelConfig, NanochatConfig
from jaxgpt.config.machines import HostsConfig, MeshConfig
from jaxgpt.config.modded_optimizers import MODDED_46, MODDED_62, MODDED_TRACK3
from jaxgpt.config.optimizer import AdamConfig, GroupConfig, MuonConfig, OptimConfig, ScheduleConfig
from jaxgpt.config.presets import (
    NANOCHAT_2025,
    NANOCHAT_2026,
    NANOCHAT_MID_2025,
    NANOCHAT_RL_2025,
    NANOCHAT_RL_2026,
    NANOCHAT_SFT_2025,
    NANOCHAT_SFT_2026,
    nanochat_2025,
    nanochat_2026,
    nanochat_mid_2025,
    nanochat_rl,
    nanochat_sft_2025,
    nanochat_sft_2026,
)
from jaxgpt.config.python_file import load, to_source
from jaxgpt.config.rl import RLConfig
from jaxgpt.config.settings import (
    CheckpointConfig,
    Config,
    EvalConfig,
    LogConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    count_microbatches,
    rows_that_divide,
)
from jaxgpt.config.speedrun import speedrun_62, speedrun_stages
from jaxgpt.config.stages import StageConfig
from jaxgpt.config.storage import flatten, from_dict, to_dict

__all__ = [
    "MODDED_46",
    "MODDED_62",
    "MODDED_TRACK3",
    "NANOCHAT_2025",
    "NANOCHAT_2026",
    "NANOCHAT_MID_2025",
    "NANOCHAT_RL_2025",
    "NANOCHAT_RL_2026",
    "NANOCHAT_SFT_2025",
    "NANOCHAT_SFT_2026",
    "AdamConfig",
    "ChatConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "GPT2Config",
    "GroupConfig",
    "HostsConfig",
    "LogConfig",
    "MeshConfig",
    "ModdedConfig",
    "ModelConfig",
    "MuonConfig",
    "NanochatConfig",
    "OptimConfig",
    "RLConfig",
    "RunConfig",
    "SampleConfig",
    "ScheduleConfig",
    "StageConfig",
    "TrainConfig",
    "count_microbatches",
    "flatten",
    "from_dict",
    "load",
    "nanochat_2025",
    "nanochat_2026",
    "nanochat_mid_2025",
    "nanochat_rl",
    "nanochat_sft_2025",
    "nanochat_sft_2026",
    "rows_that_divide",
    "speedrun_62",
    "speedrun_stages",
    "to_dict",
    "to_source",
]
