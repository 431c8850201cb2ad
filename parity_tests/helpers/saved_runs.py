"""A run directory with a checkpoint of fresh weights: what opens a trained model, without the training."""

from pathlib import Path
from typing import Literal

import jax

from jaxgpt.config import Config, MeshConfig, OptimConfig, TrainConfig, to_dict
from jaxgpt.config.derive import derive
from jaxgpt.config.families import ModelConfig
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import make_step


def save_run(
    run: Path,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    steps=(1,),
    dtype: Literal["float32", "float64"] = "float32",
    optim: OptimConfig | None = None,
) -> Config:  # fmt: skip
    """Checkpoints at these steps; the weights of a step are drawn with its number.

    Args:
      optim: whose moments are saved, drawn too, all above zero; None: AdamW's, which are zero.
    """
    train = TrainConfig(batch_tokens=8 * model.seq_len, micro_batch_size=8, dtype=dtype)
    config = Config(model=model, train=train, optim=optim or OptimConfig(), mesh=MeshConfig(data=1, platform="cpu"))
    config = derive(config).config if optim else config
    step = make_step(config, make_mesh(config.mesh))
    about = {"config": to_dict(config), "tokenizer": tokenizer.to_json(), "data_sha256": "0" * 64}
    with Checkpoints(run / "checkpoints") as saved:
        for n_done in steps:
            state = step.init_state(step.init_params(n_done))
            if optim:
                state = state._replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, state.opt_state))
            saved.save(n_done, state, about)
    return config
