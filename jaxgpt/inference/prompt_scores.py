"""What a model says about the tokens of a prompt: for clients that ask for a prompt's own log-probabilities."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import MAX_LOG_PROBS
from jaxgpt.inference.row import Token
from jaxgpt.inference.row_cache import MIN_PREFILL_TOKENS
from jaxgpt.inference.sampling import score_token
from jaxgpt.models import Model


def score_prompt(engine: Engine, ids: Sequence[int], n_likeliest: int) -> list[Token]:
    """The tokens with their log-probabilities by one uncached forward; the first has none, nothing stands before it.

    Args:
      ids: at most the model's seq_len.
      n_likeliest: at most MAX_LOG_PROBS.
    """
    n_padded = min(max(MIN_PREFILL_TOKENS, 1 << (len(ids) - 1).bit_length()), engine.model.config.seq_len)
    tokens_1T = np.zeros((1, n_padded), np.int32)
    tokens_1T[0, : len(ids)] = ids
    scored = _score(engine.model, engine.params, tokens_1T, n_valid=engine.n_valid)
    chosen_T, ids_TK, values_TK = (np.asarray(part).tolist() for part in scored)
    after = zip(ids[1:], chosen_T, ids_TK, values_TK, strict=False)  # without the padding
    tops = [(i, value, tuple(zip(top[:n_likeliest], values, strict=False))) for i, value, top, values in after]
    return [Token(ids[0]), *(Token(i, log_prob=value, likeliest=top) for i, value, top in tops)]


@functools.partial(jax.jit, static_argnames=("model", "n_valid"))
def _score(model: Model, params: Any, tokens_1T, *, n_valid: int):
    module = model.bind(params)
    logits_TV = module.logits(module(tokens_1T))[0]
    return score_token(logits_TV[:-1], tokens_1T[0, 1:], n_valid=n_valid, n_likeliest=MAX_LOG_PROBS)
