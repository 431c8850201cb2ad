"""What may differ between a checkpoint's config and the one that resumes it."""

from pathlib import Path

import pytest

from jaxgpt.config import Config, to_dict
from jaxgpt.errors import InputError
from jaxgpt.run.resume import list_changes

STAGE = {"from_step": 10, "batch_tokens": 491_520, "lr_scale": 1.0}


def changes(was, now, **flags):
    def about(settings):
        values = to_dict(Config())
        values["model"]["vocab_size"] = 100
        for name, value in settings.items():
            section, field = name.split(".")
            values[section][field] = value
        return {"config": values, "data_sha256": "d", "tokenizer": None}

    return list_changes(about(was), about(now), 5, Path("runs/x/checkpoints"), **flags)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({}, {"run.seed": 7}),
        ({}, {"data.sampling": "sequential"}),
        ({}, {"data.bos_id": 5}),
        ({}, {"data.max_document_tokens": 1024}),
        ({}, {"data.train_files": "t*", "data.val_files": "v*"}),
        ({}, {"train.batch_tokens": 983_040}),
        ({}, {"train.stages": [STAGE]}),
        ({"train.stages": [STAGE]}, {"train.stages": [STAGE | {"batch_tokens": 983_040}]}),
        ({"train.stages": [STAGE]}, {"train.stages": [STAGE | {"from_step": 11}]}),
        ({"train.stages": [STAGE]}, {"train.stages": [STAGE | {"seq_len": 512}]}),
    ],
)
def test_other_batches_are_refused_unless_allowed(was, now):
    """Faults: F27, C14."""
    with pytest.raises(InputError) as caught:
        changes(was, now)
    name = next(iter(now))
    assert name in str(caught.value) and "--allow-change" in str(caught.value) and "\n" not in str(caught.value)
    assert name in changes(was, now, allow_change=True)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({}, {"optim.lr": 1.0}),
        ({}, {"train.micro_batch_size": 4}),
        ({}, {"data.dir": "/elsewhere"}),
        ({"train.stages": [STAGE]}, {"train.stages": [STAGE | {"lr_scale": 0.5}]}),
        ({"train.stages": [STAGE]}, {"train.stages": [STAGE | {"target_weights": [1.0, 0.5]}]}),
    ],
)
def test_what_reads_the_same_batches_is_told_and_accepted(was, now):
    assert next(iter(now)) in changes(was, now)
