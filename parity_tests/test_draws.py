"""Fresh weights: those that are drawn alike come from one loop, with the bits of draws one by one."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt.config import GPT2Config, ModdedConfig, ModelConfig, NanochatConfig
from jaxgpt.models import build, init_params, read_params
from jaxgpt.models.draws import Draws


def model(family: Any, n_layer: int) -> ModelConfig:
    if family == "gpt2":
        return GPT2Config(seq_len=16, n_layer=n_layer, n_head=2, n_embd=32, vocab_size=64)
    if family == "modded":
        none, long = "-" * n_layer, "L" * n_layer
        return ModdedConfig(
            record="track3", seq_len=16, n_layer=n_layer, n_embd=32, head_dim=16, paired_heads=none, value_embeds=none,
            window_pattern=long,
        ).complete(64)  # fmt: skip
    return NanochatConfig(era=family, seq_len=16, depth=n_layer, n_embd=32, head_dim=16).complete(64)


def count_draws(jaxpr) -> int:
    """Places of a program that draw random bits, those in loops counted once."""
    inner = [value for eqn in jaxpr.eqns for value in eqn.params.values()]
    here = sum(eqn.primitive.name == "random_bits" for eqn in jaxpr.eqns)
    return here + sum(count_draws(value.jaxpr) for value in inner if hasattr(value, "jaxpr"))


@pytest.mark.parametrize("family", ["gpt2", "2025", "2026", "modded"])
def test_loops_draw_what_single_draws_do_and_compile_no_more_for_more_layers(family):
    few, more = model(family, 4), model(family, 8)
    one_by_one = jax.jit(lambda seed: read_params(build(more, draws=Draws(seed))))(7)
    in_loops = jax.jit(lambda seed: init_params(more, seed=seed))(7)
    assert one_by_one.keys() == in_loops.keys()
    for path, weight in one_by_one.items():
        np.testing.assert_array_equal(np.asarray(in_loops[path]), np.asarray(weight), err_msg=path)
    n_draws = [count_draws(jax.make_jaxpr(functools.partial(init_params, m))().jaxpr) for m in (few, more)]
    assert 0 < n_draws[0] == n_draws[1] <= 8, n_draws
