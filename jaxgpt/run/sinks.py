"""TensorBoard and Weights and Biases, where asked for. A sink that fails is reported once and dropped."""

from pathlib import Path

from jaxgpt.errors import InputError
from jaxgpt.run.console import console


class Sinks:
    """TensorBoard and Weights & Biases, where asked for."""

    def __init__(self, run_dir: Path, config: dict, *, tensorboard: bool, wandb_project: str):
        self._writers = {}
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise InputError("log.tensorboard=true needs tensorboardX; pip install 'jaxgpt[tracking]'") from error
            writer = SummaryWriter(str(run_dir / "tensorboard"))
            self._writers["TensorBoard"] = (
                lambda record: [
                    writer.add_scalar(name, value, record["step"])
                    for name, value in record.items()
                    if name != "step" and value is not None
                ],
                writer.close,
            )
        if wandb_project:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise InputError("log.wandb_project needs wandb; pip install 'jaxgpt[tracking]'") from error
            run = wandb.init(project=wandb_project, name=run_dir.name, config=config, dir=str(run_dir), resume="allow")
            self._writers["Weights & Biases"] = (lambda record: run.log(record, step=record["step"]), run.finish)

    def write(self, record: dict) -> None:
        for name, (write, _) in list(self._writers.items()):
            try:
                write(record)
            except Exception as error:  # whatever a tracker raises, it must not end the training
                console.print(f"[yellow]{name} failed and is switched off: {type(error).__name__}: {error}")
                del self._writers[name]

    def close(self) -> None:
        for _, close in self._writers.values():
            close()
