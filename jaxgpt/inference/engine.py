"""Text generation on token ids: fill a cache of keys and values from the prompt, then one token per step.

A prompt is padded to the next power of two, so prompts of all lengths share a few compiled `prefill`s, and there
is one `decode_step` for all positions. Padding leaks nowhere: it stands after the prompt, where no query of the
prompt looks, and each of its cache slots is overwritten by the token that comes there before any query sees it.

When the context is full, the engine goes on from the last half of it: it fills the cache anew from these tokens,
at positions 0, 1, ... So each token is exactly what the uncached model gives for a window of n_positions / 2 to
n_positions tokens. (nanoGPT always shows the last n_positions, which moves every token to another position at
each step, so that nothing could be kept.)

References: nanoGPT model.py `generate`; top-p: Holtzman et al., arXiv:1904.09751.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import InputError
from jaxgpt.models import Model

MIN_PREFILL_TOKENS = 16
"""Shorter prompts are padded to this."""
MIN_TEMPERATURE = 1e-20
"""Lower ones, except 0, count as this: logits divided by it stay finite in float32."""


class Engine:
    """Generates token ids with one model.

    Attributes:
      params: path -> array; may be replaced between calls, as training does.
    """

    def __init__(self, model: Model, params, *, dtype, n_positions: int | None = None, n_valid: int | None = None):
        """Compiles and allocates nothing.

        Args:
          dtype: of the computation and of the cache.
          n_positions: tokens that the cache holds, at most the model's seq_len; None: all of it.
          n_valid: ids below this may be sampled; None: all. Rows that only round the vocabulary up are no text.
        """
        self.model, self.params, self.dtype = model, params, jnp.dtype(dtype)
        self.n_positions = n_positions or model.config.seq_len
        self.n_valid = n_valid or model.config.vocab_size
        assert 2 <= self.n_positions <= model.config.seq_len, (n_positions, model.config.seq_len)
        assert self.n_valid <= model.config.vocab_size, (n_valid, model.config.vocab_size)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        n_samples: int = 1,
        stop_ids: Sequence[int] = (),
    ) -> Iterator[list[int | None]]:
        """Yields the next id of each sample, `max_tokens` times or until all have met a stop id.

        The samples of a seed are the same however many are drawn at once.

        Args:
          prompt_ids: 1 to n_positions ids.
          temperature: divides the logits; 0 takes the most likely token.
          top_k: samples among this many most likely tokens; 0: all.
          top_p: samples among the fewest most likely tokens whose probabilities, after temperature and top_k, sum
            to this; 1: all.
          stop_ids: end a sample; they are yielded, and None for that sample from then on.

        Raises:
          InputError: an argument outside its range, at the call; or logits that are not finite, while generating.
        """
        check_settings(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, n_samples=n_samples
        )
        self._check_fit(prompt_ids, top_k)
        settings = {
            "n_valid": self.n_valid,
            "top_k": 0 if temperature == 0 else top_k,
            "has_top_p": temperature > 0 and top_p < 1,
            "is_greedy": temperature == 0,
        }
        key = jax.random.key(seed)
        numbers = {"temperature": np.float32(max(temperature, MIN_TEMPERATURE)), "top_p": np.float32(top_p)}
        pick = functools.partial(choose_token, **numbers, **settings)
        return self._run(list(map(int, prompt_ids)), max_tokens, key, pick, n_samples, frozenset(stop_ids))

    def _check_fit(self, prompt_ids: Sequence[int], top_k: int) -> None:
        n_prompt = len(prompt_ids)
        bad_id = next((i for i in prompt_ids if not 0 <= i < self.n_valid), None)
        if n_prompt == 0:
            raise InputError("the prompt is empty; give at least one token")
        if n_prompt > self.n_positions:
            raise InputError(
                f"the prompt has {n_prompt} tokens, more than model.seq_len={self.n_positions}; shorten it"
            )
        if bad_id is not None:
            raise InputError(f"the prompt holds token {bad_id}, outside the vocabulary of {self.n_valid}")
        if top_k > self.n_valid:
            raise InputError(f"top_k={top_k} is above the vocabulary of {self.n_valid}; 0 keeps all tokens")

    def _run(self, prompt_ids, max_tokens, key, pick, n_samples, stop_ids):
        histories = [list(prompt_ids) for _ in range(n_samples)]
        is_done = [False] * n_samples
        logits_BV, cache, n_cached = self._fill(histories)
        token_B = pick(logits_BV, key, np.int32(len(prompt_ids)))
        for n_generated in range(1, max_tokens + 1):
            next_B = None
            if n_generated < max_tokens and n_cached < self.n_positions:  # the device goes on while the host reads
                logits_BV, cache = decode_step(
                    self.model, self.params, cache, token_B, np.int32(n_cached), dtype=self.dtype
                )
                n_cached += 1
                next_B = pick(logits_BV, key, np.int32(len(prompt_ids) + n_generated))
            ids = np.asarray(token_B).tolist()
            if min(ids) < 0:
                raise InputError("the model's logits are not finite: its weights are broken; take another checkpoint")
            for history, token_id in zip(histories, ids, strict=True):
                history.append(token_id)
            yield [None if done else token_id for done, token_id in zip(is_done, ids, strict=True)]
            is_done = [done or token_id in stop_ids for done, token_id in zip(is_done, ids, strict=True)]
            if all(is_done):
                return
            if next_B is None and n_generated < max_tokens:
                logits_BV, cache, n_cached = self._fill([history[-(self.n_positions // 2) :] for history in histories])
                next_B = pick(logits_BV, key, np.int32(len(prompt_ids) + n_generated))
            token_B = next_B

    def _fill(self, rows: list[list[int]]):
        """A cache filled from rows of one length, the logits after them, and that length."""
        n_tokens = len(rows[0])
        n_padded = min(max(MIN_PREFILL_TOKENS, 1 << (n_tokens - 1).bit_length()), self.n_positions)
        tokens_BT = np.zeros((len(rows), n_padded), np.int32)
        tokens_BT[:, :n_tokens] = rows
        logits_BV, cache = prefill(
            self.model, self.params, tokens_BT, np.int32(n_tokens), n_positions=self.n_positions, dtype=self.dtype
        )
        return logits_BV, cache, n_tokens


def check_settings(*, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int, n_samples: int) -> None:
    """Raises InputError for settings that no model can generate with."""
    for is_good, message in (
        (max_tokens >= 1, f"max_tokens={max_tokens} is below 1; ask for at least one token"),
        (0 <= temperature < float("inf"), f"temperature={temperature} is not a number from 0; 0 is greedy"),
        (top_k >= 0, f"top_k={top_k} is negative; 0 keeps all tokens"),
        (0 < top_p <= 1, f"top_p={top_p} is outside (0, 1]; 1 keeps all tokens"),
        (0 <= seed < 2**32, f"seed={seed} is outside [0, 2**32); choose one inside"),
        (n_samples >= 1, f"samples={n_samples} is below 1; ask for at least one"),
    ):
        if not is_good:
            raise InputError(message)


@functools.partial(jax.jit, static_argnames=("model", "n_positions", "dtype"))
def prefill(model: Model, params, tokens_BT, n_tokens, *, n_positions: int, dtype):
    """Logits after the first `n_tokens` of each row, [B, V], and a cache of `n_positions` filled from the rows."""
    module = model.bind(params)
    cache = module.init_cache(tokens_BT.shape[0], n_positions, dtype)
    x_BTD, cache = module.decode(tokens_BT, cache, 0, dtype=dtype)
    last_B1D = jax.lax.dynamic_slice_in_dim(x_BTD, n_tokens - 1, 1, axis=1)
    return module.logits(last_B1D)[:, 0], cache


@functools.partial(jax.jit, static_argnames=("model", "dtype"), donate_argnames="cache")
def decode_step(model: Model, params, cache, token_B, position, *, dtype):
    """Logits after one more token per row, which stands at `position`; the cache is updated in place."""
    module = model.bind(params)
    x_B1D, cache = module.decode(token_B[:, None], cache, position, dtype=dtype)
    return module.logits(x_B1D)[:, 0], cache


@functools.partial(jax.jit, static_argnames=("n_valid", "top_k", "has_top_p", "is_greedy"))
def choose_token(logits_BV, key, position, temperature, top_p, *, n_valid, top_k, has_top_p, is_greedy):
    """The next id of each row, int32; -1 where the largest logit is not finite.

    Args:
      key, position: with the row's index they make the randomness: nothing else does.
      n_valid: ids from here on are never chosen.
    """
    logits_BV = logits_BV[:, :n_valid]
    if is_greedy:
        token_B = logits_BV.argmax(axis=-1)
    else:
        scaled_BV = logits_BV / temperature
        ids_BV = None
        if top_k or has_top_p:
            scaled_BV, ids_BV = jax.lax.top_k(scaled_BV, top_k or n_valid)
        if has_top_p:
            probs_BV = jax.nn.softmax(scaled_BV, axis=-1)
            mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
            scaled_BV = jnp.where(mass_before_BV < top_p, scaled_BV, -jnp.inf)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, position), jnp.arange(logits_BV.shape[0])
        )
        token_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
        if ids_BV is not None:
            token_B = jnp.take_along_axis(ids_BV, token_B[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.isfinite(logits_BV.max(axis=-1)), token_B, -1).astype(jnp.int32)
