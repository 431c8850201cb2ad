"""What a checkpoint stands beside: the records of the steps that led to it."""

from types import SimpleNamespace
from typing import Any

from jaxgpt.config import Config, GPT2Config, LogConfig, TrainConfig
from jaxgpt.run.meter import Meter
from jaxgpt.run.saving import Saving

CONFIG = Config(
    model=GPT2Config(seq_len=8, n_layer=1, n_head=1, n_embd=8, vocab_size=32),
    train=TrainConfig(steps=10, batch_tokens=64, micro_batch_size=8),
    log=LogConfig(every=1),
)


def test_a_step_is_logged_before_its_checkpoint_is_there():
    """Else a kill between the two leaves a run that resumes after a step of which nothing is known. Faults: C82."""
    events: list[tuple[str, int]] = []
    log: Any = SimpleNamespace(write=lambda record: events.append(("logged", record["step"])))
    directory: Any = SimpleNamespace(save=lambda n_done, *_, **__: events.append(("saved", n_done)))
    bar: Any = SimpleNamespace(is_shown=True, advance=lambda *_: None)
    meter = Meter(CONFIG, "cpu", 1, bar, [log], lambda line: None)
    saving = Saving(directory, {}, meter, lambda text: [text], lambda n_done, params: 1.0)
    metrics = {"loss": 1.0, "n_skipped": 0, "n_skipped_in_row": 0}
    for val_loss in (None, 1.0):
        events.clear()
        meter.push(5, metrics)
        meter.settle()
        if val_loss:
            meter.add(val_loss=val_loss)
        saving.save(5, SimpleNamespace(params=None), {}, val_loss, must=False)
        meter.resume()
        assert events == [("logged", 5), ("saved", 5)]
