"""A backend that generates one text after another, on one thread: simple, and right for one user.

Each text has the cache to itself, so what a request gets depends on nothing else. Decoding is that of
`jaxgpt.inference.rows`: the same compiled prefill, step and choice.
"""

import functools
import queue
import threading
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.tokenizer import CHAT_SPECIALS
from jaxgpt.errors import InputError
from jaxgpt.inference.request import Request
from jaxgpt.inference.rows import MIN_PREFILL_TOKENS, decode_step, prefill
from jaxgpt.inference.sampling import choose_token, draw_of, way_of
from jaxgpt.inference.trained import Trained
from jaxgpt.models import Model
from jaxgpt.serve.backend import QueueFull, Settings, ThreadStream, Token

N_TOP = 20
"""The most logprobs per token that the API has."""
Work = tuple[ThreadStream, tuple[int, ...], Settings]


class OneByOne:
    """A `Backend` with one slot."""

    def __init__(self, trained: Trained, model_name: str, *, n_queue: int):
        """Starts the thread; compiles nothing yet.

        Args:
          n_queue: texts that may wait.

        Raises:
          InputError: the model has no tokenizer.
        """
        if trained.tokenizer is None:
            raise InputError(
                f"{trained.origin} has no tokenizer for its {trained.model.vocab_size} ids; serve a model that has"
            )
        self.tokenizer, self.model_name = trained.tokenizer, model_name
        self.n_context, self.n_capacity = trained.model.seq_len, n_queue + 1
        self.is_chat = all(name in self.tokenizer.specials for name in CHAT_SPECIALS)
        self._model, self._params = Model(trained.model, dtype=trained.compute_dtype), trained.params
        self._queue: queue.Queue[Work | None] = queue.Queue(n_queue)
        self._is_busy = self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_active(self) -> int:
        return int(self._is_busy)

    @property
    def n_waiting(self) -> int:
        return self._queue.qsize()

    def submit(self, prompt_ids: Sequence[int], settings: Settings) -> ThreadStream:
        stream = ThreadStream()
        try:
            self._queue.put_nowait((stream, tuple(prompt_ids), settings))
        except queue.Full:
            raise QueueFull from None
        return stream

    def close(self) -> None:
        self._is_closed = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            stream, prompt_ids, settings = work
            if stream.is_cancelled:
                continue
            self._is_busy = True
            try:
                self._generate(stream, prompt_ids, settings)
            except Exception as error:  # belongs to this request; the thread serves the next one
                stream.push(error)
            finally:
                self._is_busy = False

    def _generate(self, stream: ThreadStream, prompt_ids: tuple[int, ...], settings: Settings) -> None:
        tokens_1T = np.zeros((1, self._n_padded(len(prompt_ids))), np.int32)
        tokens_1T[0, : len(prompt_ids)] = prompt_ids
        if settings.is_prompt_scored:
            self._push_prompt(stream, prompt_ids, tokens_1T, settings.n_logprobs or 0)
        if settings.max_tokens == 0:
            stream.push("length")
            return
        n_positions, n_valid = self.n_context, self.tokenizer.vocab_size
        request = Request(
            prompt_ids, max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k,
            top_p=settings.top_p, seed=settings.seed, sample=settings.sample,
        )  # fmt: skip
        draw, way = draw_of([request]), way_of(request)
        logits_1V, cache = prefill(
            self._model, self._params, tokens_1T, np.int32(len(prompt_ids)), n_positions=n_positions
        )
        counts: Counter[int] = Counter()
        for n_done in range(settings.max_tokens):
            if stream.is_cancelled or self._is_closed:
                return
            length_1 = np.array([len(prompt_ids) + n_done], np.int32)
            biased_1V = self._bias(logits_1V, settings, counts)
            token_1 = choose_token(biased_1V, length_1, draw, n_valid=n_valid, way=way)
            token_id = int(token_1[0])
            if token_id < 0:
                raise InputError("the model's logits are not finite: its weights are broken; take another checkpoint")
            if token_id in settings.stop_ids:
                stream.push("stop")
                return
            counts[token_id] += 1
            if settings.n_logprobs is None:
                stream.push(Token(token_id))
            else:
                scored = score_next(logits_1V[None], token_1[None], n_valid=n_valid)
                stream.push(_token(token_id, scored, 0, settings.n_logprobs))
            if n_done + 1 < settings.max_tokens:
                logits_1V, cache = decode_step(self._model, self._params, cache, token_1, length_1)
        stream.push("length")

    def _n_padded(self, n_tokens: int) -> int:
        return min(max(MIN_PREFILL_TOKENS, 1 << (n_tokens - 1).bit_length()), self.n_context)

    def _push_prompt(self, stream: ThreadStream, ids: tuple[int, ...], tokens_1T: np.ndarray, n_top: int) -> None:
        stream.push(Token(ids[0]))
        scored = score_text(self._model, self._params, tokens_1T, n_valid=self.tokenizer.vocab_size)
        for i, token_id in enumerate(ids[1:]):
            stream.push(_token(token_id, scored, i, n_top))

    def _bias(self, logits_1V: jax.Array, settings: Settings, counts: Counter[int]) -> jax.Array:
        if not (settings.logit_bias or settings.presence_penalty or settings.frequency_penalty):
            return logits_1V
        bias_V = np.zeros(logits_1V.shape[1], np.float32)
        for token_id, bias in settings.logit_bias.items():
            bias_V[token_id] = bias
        for token_id, n in counts.items():
            bias_V[token_id] -= settings.presence_penalty + n * settings.frequency_penalty
        return logits_1V + bias_V


Scored = tuple[jax.Array, jax.Array, jax.Array]


def _token(token_id: int, scored: Scored, place: int, n_top: int) -> Token:
    logprob_T, ids_TK, top_TK = (np.asarray(part[0]) for part in scored)
    top = zip(ids_TK[place, :n_top].tolist(), top_TK[place, :n_top].tolist(), strict=True)
    return Token(token_id, float(logprob_T[place]), tuple(top))


@functools.partial(jax.jit, static_argnames="n_valid")
def score_next(logits_BTV, targets_BT, *, n_valid: int) -> Scored:
    """Logprobs of the targets, [B, T]; and ids and logprobs of the most likely N_TOP, [B, T, K]; float32.

    Args:
      n_valid: only ids below this are among the most likely. All count in the sum, as they did in training.
    """
    logprobs_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    chosen_BT = jnp.take_along_axis(logprobs_BTV, targets_BT[..., None], axis=-1)[..., 0]
    top_BTK, ids_BTK = jax.lax.top_k(logprobs_BTV[..., :n_valid], min(N_TOP, n_valid))
    return chosen_BT, ids_BTK, top_BTK


@functools.partial(jax.jit, static_argnames=("model", "n_valid"))
def score_text(model: Model, params, tokens_1T, *, n_valid: int) -> Scored:
    """As `score_next`, of each token of a text after its first: [1, T - 1]. Not cached."""
    module = model.bind(params)
    logits_1TV = module.logits(module(tokens_1T))
    return score_next(logits_1TV[:, :-1], tokens_1T[:, 1:], n_valid=n_valid)
