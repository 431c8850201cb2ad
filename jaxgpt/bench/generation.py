"""Times generation: prompts into the cache and tokens out of it, for numbers of rows that decode at once.

The figures are those of nanochat's infer_bench: time to first token (the prompts of all rows, and their first token),
time per output token (the median step), tokens per second, and bytes. Numbers of rows and kinds of weights take turns
in one process, so that what else runs on the machine slows all alike. Weights are fresh: speed does not depend on what
they say.

Reference: nanochat 92d63d4, scripts/infer_bench.py.
"""

import dataclasses
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import jax

from jaxgpt.config import Config, MeshConfig
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row_cache import make_cache
from jaxgpt.inference.rows import Rows
from jaxgpt.inference.trained import Trained
from jaxgpt.inference.weights import Kind, with_weights
from jaxgpt.models import init_params
from jaxgpt.parallel.mesh import make_mesh

Figures = dict[str, Any]
HEADER = ("weights", "rows", "first token", "per token", "tokens/s", "weights MB", "cache MB")


@dataclasses.dataclass
class Timed:
    """A kind of weights with a number of rows, and its times in seconds."""

    kind: str
    engine: Engine
    rows: Rows
    n_rows: int
    first_s: list[float] = dataclasses.field(default_factory=list)
    step_s: list[float] = dataclasses.field(default_factory=list)

    def run(self, n_prompt: int, n_tokens: int, turn: int) -> None:
        """One turn. No prompt begins as another one did, so each is computed."""
        for i in range(self.n_rows):
            first = (turn * self.n_rows + i) % self.engine.n_valid
            prompt = [first, *((7 * j + first) % self.engine.n_valid for j in range(1, n_prompt))]
            self.rows.add(Request(prompt, n_tokens, temperature=0))
        begin = time.perf_counter()
        self.rows.step()
        self.first_s.append(time.perf_counter() - begin)
        while len(self.rows.free) < self.n_rows:
            begin = time.perf_counter()
            self.rows.step()
            self.step_s.append(time.perf_counter() - begin)

    def figures(self) -> Figures:
        step_s = median(self.step_s)
        cache = jax.eval_shape(
            lambda: make_cache(self.engine.model, self.engine.params, n_positions=self.engine.n_positions)
        )
        return {
            "weights": self.kind,
            "rows": self.n_rows,
            "ttft_s": median(self.first_s),
            "tpot_s": step_s,
            "tokens_per_s": self.n_rows / step_s,
            "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(self.engine.params)),
            "cache_bytes": self.n_rows * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)),
        }


def time_generation(
    config: Config, batches: Sequence[int], kinds: Sequence[Kind | None], n_rounds: int
) -> list[dict[str, Any]]:
    """Figures for each kind of weights and number of rows.

    Args:
      batches: numbers of rows.
      kinds: None for the weights as they are stored, else as in `with_weights`.
      n_rounds: turns of each that count; the one before them compiles.

    Raises:
      InputError: as `with_weights`.
    """
    model = config.model.without_dropout()
    mesh = make_mesh(dataclasses.replace(MeshConfig(data=1), platform=config.mesh.platform))
    params = jax.jit(lambda: init_params(model))()
    trained = Trained(None, model, params, None, config.train.dtype, mesh, "fresh weights")
    engines = {kind: (with_weights(trained, kind) if kind else trained).engine() for kind in kinds}
    timed = [
        Timed(kind or "as stored", engine, engine.rows([None] * n_rows), n_rows)
        for kind, engine in engines.items()
        for n_rows in batches
    ]
    n_prompt = model.seq_len // 2
    n_tokens = min(model.seq_len - n_prompt, 64)
    for turn in range(n_rounds + 1):
        for one in timed:
            one.run(n_prompt, n_tokens, turn)
            if turn == 0:
                one.first_s.clear()
                one.step_s.clear()
    return [one.figures() for one in timed]


def table_rows(figures: Sequence[Figures]) -> list[list[str]]:
    return [
        [
            one["weights"],
            str(one["rows"]),
            f"{one['ttft_s'] * 1e3:,.1f} ms",
            f"{one['tpot_s'] * 1e3:,.2f} ms",
            f"{one['tokens_per_s']:,.0f}",
            f"{one['weight_bytes'] / 1e6:,.1f}",
            f"{one['cache_bytes'] / 1e6:,.1f}",
        ]
        for one in figures
    ]
