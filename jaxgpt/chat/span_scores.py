"""What a model says about spans, in batches: rows of similar length together, in few compiled shapes.

Rows are sorted by length and padded at their end, where no scored token looks; the longest come first, so a device
whose memory does not suffice fails at once. Logits are computed at scored tokens alone: a head of 50,304 ids over
1,000 tokens costs more than a small model.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.chat.span import Span, SpanScore
from jaxgpt.config.families import ModelConfig, NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.inference.trained import Trained
from jaxgpt.models import Model
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.parallel.sharding import put_rows

MIN_TOKENS = 32
"""Shorter rows are padded to this."""
BATCH_TOKENS = {"cpu": (4_096, 1_024)}
"""Padded tokens per device and pass, and how many of them are scored; on other platforms `MANY_TOKENS`."""
MANY_TOKENS = (16_384, 4_096)
ROTARY_REACH = 10
"""nanochat's models read rows of up to this many times their training length."""


@dataclass(frozen=True)
class Shape:
    """A compiled shape: rows of all devices, tokens of a row, scored tokens of a row."""

    n_rows: int
    n_tokens: int
    n_scored: int


class SpanScorer:
    """A trained model as a `Scorer`, and the logits that follow a prompt.

    Attributes:
      max_tokens: of a row: the context; of nanochat's models, whose positions are rotations and which nanochat
        evaluates on longer rows than they were trained on, ten times as many. There a layer that sees all of its
        context sees all of the row.
      shapes: that were compiled so far.
    """

    def __init__(self, trained: Trained, batch_tokens: int = 0):
        """Compiles nothing yet.

        Args:
          batch_tokens: padded tokens per device and pass; 0: by the platform.
        """
        self._config, self._dtype, self._params = trained.model.without_dropout(), trained.compute_dtype, trained.params
        self._mesh, self._n_devices = trained.mesh, count_batch_devices(trained.mesh)
        platform = trained.mesh.devices.flat[0].platform
        self._batch_tokens, self._batch_scored = BATCH_TOKENS.get(platform, MANY_TOKENS)
        self._batch_tokens = batch_tokens or self._batch_tokens
        reach = ROTARY_REACH if isinstance(self._config, NanochatConfig) else 1
        self.max_tokens = reach * self._config.seq_len
        self.shapes: set[Shape] = set()

    def __call__(self, spans: Sequence[Span], on_progress: Callable[[int], None] | None = None) -> list[SpanScore]:
        """Scores of the spans, in their order.

        Args:
          on_progress: receives how many are done.

        Raises:
          InputError: the model's logits are not finite.
        """
        scores = [SpanScore(0.0, 0, True)] * len(spans)
        asked = [i for i, span in enumerate(spans) if len(span)]
        n_done = len(spans) - len(asked)
        for shape, batch in self._batches([len(spans[i].ids) for i in asked], [len(spans[i]) for i in asked]):
            rows = [spans[asked[i]] for i in batch]
            places_BS = np.zeros((shape.n_rows, shape.n_scored), np.int32)
            targets_BS = np.zeros_like(places_BS)
            for b, row in enumerate(rows):
                places_BS[b, : len(row)] = np.arange(row.start - 1, row.end - 1)
                targets_BS[b, : len(row)] = row.ids[row.start : row.end]
            nats_BS, is_best_BS = self._run(span_losses, shape, [row.ids for row in rows], places_BS, targets_BS)
            for b, row in enumerate(rows):
                nats = float(nats_BS[b, : len(row)].sum(dtype=np.float64))
                _require_finite(nats)
                scores[asked[batch[b]]] = SpanScore(nats, len(row), bool(is_best_BS[b, : len(row)].all()))
            n_done += len(rows)
            if on_progress:
                on_progress(n_done)
        return scores

    def next_logits(self, prompts: Sequence[np.ndarray], choices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The logits of each prompt's choices at the place after its last token, float [choices] each.

        Args:
          prompts: int32 [n] each, at least one id and at most `max_tokens`.
          choices: ids.

        Raises:
          InputError: they are not finite.
        """
        found: list[np.ndarray] = [np.zeros(0)] * len(prompts)
        for shape, batch in self._batches([len(ids) for ids in prompts], [len(ids) for ids in choices]):
            last_B = np.zeros(shape.n_rows, np.int32)
            choices_BC = np.zeros((shape.n_rows, shape.n_scored), np.int32)
            for b, i in enumerate(batch):
                last_B[b] = len(prompts[i]) - 1
                choices_BC[b, : len(choices[i])] = choices[i]
            (logits_BC,) = self._run(choice_logits, shape, [prompts[i] for i in batch], last_B, choices_BC)
            for b, i in enumerate(batch):
                found[i] = logits_BC[b, : len(choices[i])]
                _require_finite(float(found[i].sum()))
        return found

    def _batches(self, n_tokens: Sequence[int], n_scored: Sequence[int]) -> Iterator[tuple[Shape, list[int]]]:
        """Rows that share a pass, by index, and the shape that they are padded to; the longest rows come first.

        Args:
          n_tokens, n_scored: of each row.
        """
        order = sorted(range(len(n_tokens)), key=lambda i: -n_tokens[i])
        while order:
            padded = self._padded(n_tokens[order[0]])
            most = max(self._batch_tokens // padded, 1)
            scored = power_above(max(n_scored[i] for i in order[: most * self._n_devices]), 4, 16)
            most = max(min(most, self._batch_scored // scored), 1)
            n_rows = min(power_above(-(-len(order) // self._n_devices), 4, 1), most) * self._n_devices
            yield Shape(n_rows, padded, scored), order[:n_rows]
            order = order[n_rows:]

    def _padded(self, n_tokens: int) -> int:
        """The next of 32, 48, 64, 96, 128, ..., at most `max_tokens`."""
        power = power_above(n_tokens, 2, MIN_TOKENS)
        between = power * 3 // 4 if power > MIN_TOKENS else power
        return min(between if n_tokens <= between else power, self.max_tokens)

    def _run(self, compute: Any, shape: Shape, rows: Sequence[np.ndarray], *about: np.ndarray) -> Any:
        """Runs a compiled function on padded rows; NumPy arrays."""
        self.shapes.add(shape)
        tokens_BT = np.zeros((shape.n_rows, shape.n_tokens), np.int32)
        for b, ids in enumerate(rows):
            tokens_BT[b, : len(ids)] = ids
        assert tokens_BT.min() >= 0 and tokens_BT.max() < self._config.vocab_size
        with jax.set_mesh(self._mesh):
            placed = put_rows((tokens_BT, *about), shape.n_rows, self._mesh)
            return jax.device_get(compute(self._model(shape.n_tokens), self._params, *placed))

    def _model(self, n_tokens: int) -> Model:
        """The model for rows of so many tokens."""
        config = self._config
        return _model(dataclasses.replace(config, seq_len=max(n_tokens, config.seq_len)), self._dtype)


@functools.lru_cache(maxsize=32)
def _model(config: ModelConfig, dtype: str) -> Model:
    return Model(config, dtype=dtype)


def power_above(n: int, base: int, first: int) -> int:
    """The least of first, first * base, first * base * base, ... that is at least n."""
    while first < n:
        first *= base
    return first


def _require_finite(value: float) -> None:
    if not np.isfinite(value):
        raise InputError("the model's logits are not finite: its weights are broken; take another checkpoint")


@functools.partial(jax.jit, static_argnames="model")
def span_losses(model: Model, params, tokens_BT, places_BS, targets_BS):
    """The loss in nats of the token that follows each place, [B, S], and whether it is the most likely one."""
    module = model.bind(params)
    x_BSD = jnp.take_along_axis(module(tokens_BT), places_BS[..., None], axis=1)
    logits_BSV = module.logits(x_BSD)
    at_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BSV, axis=-1) - at_BS, jnp.argmax(logits_BSV, axis=-1) == targets_BS


@functools.partial(jax.jit, static_argnames="model")
def choice_logits(model: Model, params, tokens_BT, last_B, choices_BC):
    """The logits of some ids, [B, C], at the place after each row's last token."""
    module = model.bind(params)
    x_B1D = jnp.take_along_axis(module(tokens_BT), last_B[:, None, None], axis=1)
    return (jnp.take_along_axis(module.logits(x_B1D)[:, 0], choices_BC, axis=-1),)
