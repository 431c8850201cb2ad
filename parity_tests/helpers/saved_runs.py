"""A run directory with a checkpoint of fresh weights: what opens a trained model, without the training."""

from pathlib import Path
from typing import Literal

from jaxgpt.config import Config, MeshConfig, TrainConfig, to_dict
from jaxgpt.config.families import ModelConfig
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import make_step


def save_run(
    run: Path, model: ModelConfig, tokenizer: Tokenizer, *, steps=(1,), dtype: Literal["float32", "float64"] = "float32"
) -> Config:
    """Checkpoints at these steps; the weights of a step are drawn with its number."""
    train = TrainConfig(batch_tokens=8 * model.seq_len, micro_batch_size=8, dtype=dtype)
    config = Config(model=model, train=train, mesh=MeshConfig(data=1, platform="cpu"))
    step = make_step(config, make_mesh(config.mesh))
    about = {"config": to_dict(config), "tokenizer": tokenizer.to_json(), "data_sha256": "0" * 64}
    with Checkpoints(run / "checkpoints") as saved:
        for n_done in steps:
            saved.save(n_done, step.init_state(step.init_params(n_done)), about)
    return config
