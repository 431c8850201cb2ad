"""Trials of mutants: the weights, torch_ref's run and jaxgpt's own, against which a mutant's run is compared.

`Trials.try_mutant` trains the mutant for a few steps. A brief trial takes the least that can show the bug: logits and
gradients of one batch, or the optimizer alone. `make_brief_trials` has what these need, and trains nothing but one step
of torch_ref.
"""

import dataclasses
import functools
from contextlib import ExitStack
from dataclasses import dataclass

from jaxgpt.compare.gates import Row, compare
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import Arrays, Trajectory, draw_params, first_batch, run_jax, run_torch
from jaxgpt.config import Config
from jaxgpt.data.batch import Batch
from parity_tests.modded_mutations import MODDED_MUTATIONS
from parity_tests.modded_update_mutations import MODDED_UPDATE_MUTATIONS
from parity_tests.mutations import MUTATIONS, Mutation, Plan
from parity_tests.nanochat_mutations import NANOCHAT_MUTATIONS
from parity_tests.small_runs import batches_of, make_config
from parity_tests.updates import Update, draw_gradients, update_jax, update_torch

ALL_MUTATIONS = MUTATIONS | NANOCHAT_MUTATIONS | MODDED_MUTATIONS | MODDED_UPDATE_MUTATIONS
MASKED_ID = 7
"""Where a comparison masks tokens, these targets are not counted: another number in each microbatch."""


def run_reference(
    recipe: str, n_steps: int, dtype: str, *, is_small: bool = False, is_masked: bool = False
) -> tuple[Arrays, Trajectory]:
    """The weights that all start from, and torch_ref's run."""
    config = make_config(recipe, n_steps, dtype, is_small=is_small)
    params = draw_params(config)
    return params, run_torch(config, params, _batches(config, n_steps, is_masked))


def run_unmutated(
    recipe: str, params: Arrays, n_steps: int, dtype: str, *, is_small: bool = False, is_masked: bool = False
) -> Trajectory:
    """jaxgpt's run as it is."""
    config = make_config(recipe, n_steps, dtype, is_small=is_small)
    return run_jax(config, params, _batches(config, n_steps, is_masked))


def _batches(config: Config, n_steps: int, is_masked: bool) -> list[Batch]:
    """The batches of a run; masked ones do not count the targets MASKED_ID."""
    batches = batches_of(config, n_steps)
    return [Batch(b.tokens, b.tokens[..., 1:] != MASKED_ID) for b in batches] if is_masked else batches


@dataclass(frozen=True)
class Trials:
    """What mutants of one kind are tried against.

    Attributes:
      reference, unmutated: runs of torch_ref, and of jaxgpt without a bug.
      gradients: what optimizers are given in brief trials, one set a step.
      updated: what torch_ref's optimizer makes of them.
    """

    dtype: str
    n_steps: int
    params: Arrays
    reference: Trajectory
    unmutated: Trajectory
    gradients: list[Arrays]
    updated: Update

    def try_mutant(self, mutation: Mutation, *, is_brief: bool = False) -> list[Row]:
        """Plants the bug, runs, compares."""
        reference = self.reference
        with ExitStack() as stack:
            config = make_config(mutation.recipe, self.n_steps, self.dtype, is_small=True)
            plan = Plan(stack, config, self.params)
            plan = mutation.plant(plan)
            batches = _batches(config, self.n_steps, mutation.is_masked)
            if is_brief and mutation.is_update:
                ours = _with_update(self.unmutated, update_jax(plan.config, plan.params, self.gradients))
                reference = _with_update(reference, self.updated)
            elif is_brief and mutation.is_early:
                ours = _with_first_batch(self.unmutated, plan, batches[0], mutation.is_masked)
            else:
                known = self.unmutated if mutation.is_update else None
                ours = run_jax(plan.config, plan.params, batches, known=known)
        return compare(ours, reference, PARITY[self.dtype])


def _with_update(run: Trajectory, update: Update) -> Trajectory:
    first, last, opt_state = update
    return dataclasses.replace(run, first=first, last=last, opt_state=opt_state)


def _with_first_batch(run: Trajectory, plan: Plan, batch: Batch, is_masked: bool) -> Trajectory:
    n_rows = batch.tokens.shape[1]
    if not is_masked:  # one pass, the same sums
        batch = Batch(batch.tokens.reshape(1, -1, batch.tokens.shape[-1]))
    logits, grads = first_batch(plan.config, plan.params, batch)
    return dataclasses.replace(run, logits=logits[:n_rows], grads=grads)


@functools.cache
def make_trials(recipe: str, is_masked: bool, dtype: str, n_steps: int) -> Trials:
    """Small models: each mutant is compiled anew."""
    params, reference = run_reference(recipe, n_steps, dtype, is_small=True, is_masked=is_masked)
    unmutated = run_unmutated(recipe, params, n_steps, dtype, is_small=True, is_masked=is_masked)
    gradients = draw_gradients(unmutated.grads, n_steps)
    updated = update_torch(make_config(recipe, n_steps, dtype, is_small=True), params, gradients)
    return Trials(dtype, n_steps, params, reference, unmutated, gradients, updated)


@functools.cache
def make_brief_trials(recipe: str, dtype: str, n_steps: int) -> Trials:
    """For brief trials alone, each of which compares a part: the rest is torch_ref's on both sides.

    That is one step, its loss repeated. jaxgpt's model is not run here, and nothing is compiled as a whole.
    """
    config = make_config(recipe, n_steps, dtype, is_small=True)
    params = draw_params(config)
    reference = run_torch(config, params, batches_of(config, 1))
    reference = dataclasses.replace(
        reference, losses=n_steps * reference.losses, grad_norms=n_steps * reference.grad_norms
    )
    gradients = draw_gradients(reference.grads, n_steps)
    unmutated = dataclasses.replace(reference, name="jaxgpt")
    return Trials(
        dtype, n_steps, params, reference, unmutated, gradients, update_torch(config, params, gradients)
    )  # fmt: skip
