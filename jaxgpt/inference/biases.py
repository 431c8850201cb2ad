"""What is added to a row's logits before a token is chosen: biases of single ids, and penalties for those it has used.

Rows without them lose nothing: what is added to theirs is zero. Reference: OpenAI's API, presence_penalty,
frequency_penalty and logit_bias of chat/completions.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.inference.request import Request


class Biases(NamedTuple):
    """Of all rows.

    Attributes:
      bias_BV: added to the logits.
      count_BV: tokens that the row has got since its start, forced ones among them, by id.
      presence_B: taken off the logit of an id with a count.
      frequency_B: taken off the logit of an id, times its count.
    """

    bias_BV: jax.Array
    count_BV: jax.Array
    presence_B: jax.Array
    frequency_B: jax.Array


def no_biases(n_rows: int, vocab_size: int) -> Biases:
    table, row = (n_rows, vocab_size), (n_rows,)
    return Biases(jnp.zeros(table), jnp.zeros(table), jnp.zeros(row), jnp.zeros(row))


def with_request(biases: Biases, row: int, request: Request) -> Biases:
    """A row begins a request: its biases, and no counts."""
    bias_V = np.zeros(biases.bias_BV.shape[1], np.float32)
    for token_id, bias in request.logit_bias:
        bias_V[token_id] = bias
    penalties = np.float32(request.presence_penalty), np.float32(request.frequency_penalty)
    return _set_row(biases, np.int32(row), bias_V, *penalties)


@functools.partial(jax.jit, donate_argnums=0)
def _set_row(biases: Biases, row, bias_V, presence, frequency) -> Biases:
    return Biases(
        biases.bias_BV.at[row].set(bias_V),
        biases.count_BV.at[row].set(0),
        biases.presence_B.at[row].set(presence),
        biases.frequency_B.at[row].set(frequency),
    )


@functools.partial(jax.jit, donate_argnums=0)
def count_token(biases: Biases, token_B, is_running_B) -> Biases:
    """Each row that is running has got one more token."""
    rows = jnp.arange(token_B.shape[0])
    return biases._replace(count_BV=biases.count_BV.at[rows, token_B].add(is_running_B.astype(jnp.float32)))


@jax.jit
def bias_logits(logits_BV, biases: Biases):
    """Logits to choose from, like `logits_BV`."""
    penalty_BV = biases.presence_B[:, None] * (biases.count_BV > 0) + biases.frequency_B[:, None] * biases.count_BV
    return logits_BV + (biases.bias_BV - penalty_BV).astype(logits_BV.dtype)
