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
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.run.console import working
from jaxgpt.training.memory import describe_memory
from jaxgpt.training.step import Step


def lower_train(step: Step, n_micro: int, n_rows: int) -> Any:
    """The training step for batches [n_micro, n_rows, T + 1], traced but not compiled."""
    batch = Batch(jax.ShapeDtypeStruct((n_micro, n_rows, step.model.config.seq_len + 1), np.int32))
    hyper = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in step.hyper(schedule.NO_HYPER).items()}
    return step.train.lower(step.state_shapes, batch, hyper)


def lower_evaluate(step: Step, n_rows: int) -> Any:
    """The evaluation of batches [n_rows, T + 1] under the two masks of `evaluation.make_masks`."""
    seq_len = step.model.config.seq_len
    batch = jax.ShapeDtypeStruct((n_rows, seq_len + 1), np.int32)
    return step.evaluate.lower(step.state_shapes.params, batch, jax.ShapeDtypeStruct((n_rows, seq_len, 2), np.bool_))


def compile_programs(
    step: Step, plan: Plan, say: Callable[[str], None], also: Callable[[], None] = lambda: None
) -> tuple[list[Any], Step]:
    """The training step by stage, and the step with its evaluation compiled. Call under the step's mesh.

    Stages whose steps have as many microbatches share one program.

    Args:
      say: receives a line about each program.
      also: called beside the compilers.
    """
    counts = list(dict.fromkeys(plan.n_micro))
    names = [f"the step ({count} x {plan.n_rows} rows)" for count in counts] + ["the evaluation"]
    say(f"compiling {', '.join(names)} ...")
    with working("tracing the step"):
        lowered = [lower_train(step, count, plan.n_rows) for count in counts] + [lower_evaluate(step, plan.n_rows)]

    def compile_one(name: str, program: Any) -> Any:
        begin = time.perf_counter()
        compiled = program.compile()
        say(f"compiled {name} in {time.perf_counter() - begin:.1f} s")
        return compiled

    n_threads = 1 if jax.process_count() > 1 else len(lowered) + 1  # processes that compile together keep one order
    with working("compiling"), ThreadPoolExecutor(n_threads) as pool:
        beside = pool.submit(also)
        *steps, evaluate = pool.map(compile_one, names, lowered)
        beside.result()
    for count, compiled in zip(counts, steps, strict=True):
        n_tokens = count * plan.n_rows * step.model.config.seq_len
        say(f"memory for {n_tokens:,} tokens a step: {describe_memory(compiled, step.mesh)}, by the compiler")
    by_count = dict(zip(counts, steps, strict=True))
    return [by_count[count] for count in plan.n_micro], dataclasses.replace(step, evaluate=evaluate)
