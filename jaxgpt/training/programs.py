"""The compiled programs of a run: one training step for each size of batch, and the evaluation.

They are compiled side by side before step 0, so that training never stalls. XLA's work for one program is nearly all on
one core. JAX's cache on disk keeps them for the next process: a resumed run, another seed, another learning rate.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxgpt.config import schedule
from jaxgpt.training.step import Step


def lower_train(step: Step, n_micro: int, n_rows: int) -> Any:
    """The training step for batches [n_micro, n_rows, T + 1], traced but not compiled."""
    batch = jax.ShapeDtypeStruct((n_micro, n_rows, step.model.config.seq_len + 1), np.int32)
    hyper = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in step.hyper(schedule.NO_HYPER).items()}
    return step.train.lower(step.state_shapes, batch, hyper)


def lower_evaluate(step: Step, n_rows: int) -> Any:
    """The evaluation of batches [n_rows, T + 1] under the two masks of `evaluation.make_masks`."""
    seq_len = step.model.config.seq_len
    batch = jax.ShapeDtypeStruct((n_rows, seq_len + 1), np.int32)
    return step.evaluate.lower(step.state_shapes.params, batch, jax.ShapeDtypeStruct((n_rows, seq_len, 2), np.bool_))


def compile_programs(
    step: Step, n_micro: dict[int, int], n_rows: int, say: Callable[[str], None]
) -> tuple[dict[int, Any], Step]:
    """The training step by tokens of a batch, and the step with its evaluation compiled. Call under the step's mesh.

    Args:
      n_micro: tokens of a batch -> microbatches in it.
      n_rows: rows of a microbatch, and of an evaluation's batch, over all devices.
      say: is told how long each took.
    """
    names = {tokens: f"the step ({count} x {n_rows} rows)" for tokens, count in n_micro.items()}
    lowered = {tokens: lower_train(step, count, n_rows) for tokens, count in n_micro.items()}
    lowered[0], names[0] = lower_evaluate(step, n_rows), "the evaluation"

    def compile_one(key: int) -> Any:
        begin = time.perf_counter()
        compiled = lowered[key].compile()
        say(f"compiled {names[key]} in {time.perf_counter() - begin:.1f} s")
        return compiled

    n_threads = 1 if jax.process_count() > 1 else len(lowered)  # processes that compile together keep one order
    with ThreadPoolExecutor(n_threads) as pool:
        compiled = dict(zip(lowered, pool.map(compile_one, lowered), strict=True))
    return compiled, dataclasses.replace(step, evaluate=compiled.pop(0))
