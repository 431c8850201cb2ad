"""The compiled programs of a run: one training step and one evaluation for each kind of stage.

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
from jaxgpt.parallel.compiler_options import explain_option
from jaxgpt.run.console import working
from jaxgpt.training.memory import describe_memory
from jaxgpt.training.step import Step, make_stage


def lower_train(
    step: Step, n_micro: int, n_rows: int, hyper: dict[str, Any] = schedule.NO_HYPER, *, mask_dtype: Any = None
) -> Any:
    """The training step for batches [n_micro, n_rows, T + 1], traced but not compiled.

    Args:
      hyper: its form is what counts, not its values.
      mask_dtype: of the reader's masks, such as those of conversations; None: it has none.
    """
    seq_len = step.model.config.seq_len
    mask = jax.ShapeDtypeStruct((n_micro, n_rows, seq_len), mask_dtype) if mask_dtype else None
    batch = Batch(jax.ShapeDtypeStruct((n_micro, n_rows, seq_len + 1), np.int32), mask)
    shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in step.hyper(hyper).items()}
    return step.train.lower(step.state_shapes, batch, shapes)


def lower_stage(step: Step, plan: Plan, stage: int) -> tuple[Step, Any]:
    """The step of a stage, and its training step traced.

    Args:
      step: of the run's config.
    """
    made = make_stage(step, plan.config.at_stage(stage))
    hyper = schedule.hyper_at(plan.config, plan.first_step(stage))
    mask_dtype = (np.float32 if plan.config.is_rl else np.uint8) if plan.config.data.is_chat else None
    return made, lower_train(made, plan.n_micro[stage], plan.n_rows[stage], hyper, mask_dtype=mask_dtype)


def lower_evaluate(step: Step, n_rows: int) -> Any:
    """The evaluation of batches [n_rows, T + 1] under the two masks of `evaluation.make_masks`."""
    seq_len = step.model.config.seq_len
    batch = jax.ShapeDtypeStruct((n_rows, seq_len + 1), np.int32)
    return step.evaluate.lower(step.state_shapes.params, batch, jax.ShapeDtypeStruct((n_rows, seq_len, 2), np.bool_))


def compile_programs(
    step: Step, plan: Plan, say: Callable[[str], None], also: Callable[[], None] = lambda: None
) -> tuple[list[Any], list[Step]]:
    """The training step by stage, and by `Plan.eval_stage` a step whose evaluation is compiled.

    Stages that differ in nothing that is compiled share a program. Call under the step's mesh.

    Args:
      say: receives a line about each program.
      also: called beside the compilers.

    Raises:
      InputError: this XLA has no option that a setting asks for.
    """
    firsts = [plan.first_alike(stage) for stage in range(len(plan.n_micro))]
    models = plan.config.eval_models()
    evaluated = [models.index(model) for model in models]
    is_varied = len(set(evaluated)) > 1 or len({plan.n_micro[stage] for stage in firsts}) < len(set(firsts))
    names, lowered, evaluators = [], [], []
    with working("tracing the step"):
        for stage in dict.fromkeys(firsts):
            when = f" from step {plan.first_step(stage)}" if is_varied else ""
            names.append(f"the step{when} ({plan.n_micro[stage]} x {plan.n_rows[stage]} rows)")
            lowered.append(lower_stage(step, plan, stage)[1])
        for which in dict.fromkeys(evaluated):
            when = f" from step {plan.first_step(which)}" if which < len(firsts) else " at the end"
            names.append(f"the evaluation{when if is_varied else ''}")
            evaluators.append(make_stage(step, plan.config.at_evaluation(which)))
            lowered.append(lower_evaluate(evaluators[-1], plan.n_eval_rows))
    say(f"compiling {', '.join(names)} ...")

    def compile_one(name: str, program: Any) -> Any:
        begin = time.perf_counter()
        try:
            compiled = program.compile()
        except Exception as error:
            if refused := explain_option(error):
                raise refused from error
            raise
        say(f"compiled {name} in {time.perf_counter() - begin:.1f} s")
        return compiled

    n_threads = 1 if jax.process_count() > 1 else len(lowered) + 1  # processes that compile together keep one order
    with working("compiling"), ThreadPoolExecutor(n_threads) as pool:
        beside = pool.submit(also)
        compiled = list(pool.map(compile_one, names, lowered))
        beside.result()
    trained = dict(zip(dict.fromkeys(firsts), compiled, strict=False))
    for stage, program in trained.items():
        n_tokens = plan.n_micro[stage] * plan.n_rows[stage] * plan.seq_lens[stage]
        say(f"memory for {n_tokens:,} tokens a step: {describe_memory(program, step.mesh)}, by the compiler")
    evaluators = [
        dataclasses.replace(made, evaluate=program)
        for made, program in zip(evaluators, compiled[len(trained) :], strict=True)
    ]
    by_model = dict(zip(dict.fromkeys(evaluated), evaluators, strict=True))
    return [trained[stage] for stage in firsts], [by_model[which] for which in evaluated]
