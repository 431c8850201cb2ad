"""Times generation: prompts into the cache and tokens out of it, for numbers of rows that decode at once.

The figures are those of nanochat's infer_bench: time to first token (the prompts of all rows, and their first token),
time per output token (the median step), tokens per second, bytes, and how much of the memory's bandwidth they are.
Numbers of rows, kinds of weights and other ways to generate take turns in one process, on the same weights and prompts,
so that what else runs on the machine slows all alike. Weights are fresh: speed does not depend on what they say.

Reference: nanochat 92d63d4, scripts/infer_bench.py.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgpt.bench.writers import STORED, Turn, Writer
from jaxgpt.config import Config, MeshConfig
from jaxgpt.config.families import ModelConfig
from jaxgpt.config.flops import mfu
from jaxgpt.config.hardware import find_device
from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row_cache import make_cache
from jaxgpt.inference.trained import Trained
from jaxgpt.inference.weights import KEPT, Kind, with_weights
from jaxgpt.models import init_params
from jaxgpt.parallel.mesh import make_mesh

Figures = dict[str, Any]
OURS = "jaxgpt"
HEADER = ("program", "first token, ms", "per token, ms", "tokens/s", "of ours", "same", "MBU", "MFU", "weights, MB")
COPIED_BYTES = 128 << 20
"""Copied to see what the memory permits: more than caches hold."""


class Ours:
    """The engine's rows. A `Writer`."""

    name = OURS

    def __init__(self, engine: Engine, weights: str, n_rows: int):
        self.weights, self._rows = weights, engine.rows([None] * n_rows)

    def write(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> Turn:
        ids: list[list[int]] = [[] for _ in prompts]
        row_of = [self._rows.add(Request(prompt, n_tokens, temperature=0)) for prompt in prompts]
        times = []
        for _ in range(n_tokens):
            begin = time.perf_counter()
            tokens = self._rows.step()
            times.append(time.perf_counter() - begin)
            for i, row in enumerate(row_of):
                token = tokens[row]
                assert token is not None
                ids[i].append(token.id)
        return Turn(ids, times[0], times[1:])


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a step of one more token for each row takes at least.

    Attributes:
      weight_bytes: stored.
      cache_bytes: of one row, for a whole context.
      step_bytes: weights and cache that a step reads.
      step_flops: of its products.
    """

    weight_bytes: int
    cache_bytes: int
    step_bytes: float
    step_flops: float


def costs_of(engine: Engine, n_rows: int, n_context: float) -> Costs:
    """Costs of a step where each row has so many tokens before it.

    Tables that are only looked up in are not read; a query reads the keys and values within its layer's window.
    """
    model, params = engine.model.config, engine.params
    looked_up = (*KEPT, "wte.weight") if "lm_head.weight" in params else KEPT
    n_bytes = {path: sum(leaf.nbytes for leaf in jax.tree.leaves(leaves)) for path, leaves in params.items()}
    read_bytes = sum(n for path, n in n_bytes.items() if not path.startswith(looked_up))
    cache = jax.eval_shape(lambda: make_cache(engine.model, params, n_positions=engine.n_positions))
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    n_keys = sum(min(model.window(layer), n_context) for layer in range(model.n_layer))
    key_bytes = 2 * model.n_kv_head * model.head_dim * jnp.dtype(engine.model.dtype).itemsize
    flops = n_rows * (2 * model.count_params().linear + 4 * model.n_head * model.head_dim * n_keys)
    return Costs(sum(n_bytes.values()), cache_bytes, read_bytes + n_rows * key_bytes * n_keys, flops)


class Bandwidth:
    """How many bytes a second the memory moves: as stated for a known card, else the best copy seen here.

    A copy counts twice: each byte is read and written.
    """

    def __init__(self, mesh: Mesh):
        device = mesh.devices.flat[0]
        known = find_device(device.device_kind)
        self.is_stated = known is not None
        self.bytes_s = known.bandwidth_bytes_s if known else 0.0
        self._copy = jax.jit(lambda x: x + 1)
        self._array = None if known else jax.device_put(np.zeros(COPIED_BYTES // 4, np.float32), device)

    def measure(self) -> None:
        """Another copy, where nothing is stated."""
        if self._array is not None:
            begin = time.perf_counter()
            self._array = jax.block_until_ready(self._copy(self._array))
            self.bytes_s = max(self.bytes_s, 2 * COPIED_BYTES / (time.perf_counter() - begin))


def time_generation(
    config: Config, batches: Sequence[int], kinds: Sequence[Kind | None], rivals: Sequence[str], n_rounds: int,
    *, n_prompt: int | None = None, n_tokens: int | None = None, say: Callable[[int], None] = lambda turn: None,
) -> dict[str, Any]:  # fmt: skip
    """Figures for each way to generate and number of rows: `batches`, in the order of turns, `bandwidth`, `versions`.

    Args:
      batches: numbers of rows.
      kinds: None for the weights as they are stored, else as in `with_weights`.
      rivals: other ways: torch, nanogpt, hf.
      n_rounds: turns of each that count; the one before them compiles.
      n_prompt: tokens of a prompt; None: half a context.
      n_tokens: generated for each; None: 64, or as many as there is room for.
      say: called with the number of the turn that begins; 0 is the one that compiles.

    Raises:
      InputError: as `with_weights`; the context is too short; or a rival has no such model.
    """
    model = config.model.without_dropout()
    n_prompt, n_tokens = require_context(model, n_prompt, n_tokens)
    mesh = make_mesh(dataclasses.replace(MeshConfig(data=1), platform=config.mesh.platform))
    params = jax.jit(lambda: init_params(model))()
    trained = Trained(None, model, params, None, config.train.dtype, mesh, "fresh weights")
    engines = {kind or STORED: (with_weights(trained, kind) if kind else trained).engine() for kind in kinds}
    others: list[Writer] = []
    versions = {"jax": jax.__version__}
    if rivals:
        from jaxgpt.bench.torch_generation import make_writers  # here: PyTorch is optional

        others, more = make_writers(rivals, model, jax.device_get(params), trained.compute_dtype)
        versions |= more
    timed: list[tuple[Writer, int, list[Turn]]] = [
        (writer, n_rows, [])
        for n_rows in batches
        for writer in (*(Ours(engine, kind, n_rows) for kind, engine in engines.items()), *others)
    ]
    bandwidth = Bandwidth(mesh)
    for turn in range(n_rounds + 1):
        say(turn)
        bandwidth.measure()
        for writer, n_rows, turns in timed:
            turns.append(writer.write(make_prompts(turn, n_rows, n_prompt, engines[STORED].n_valid), n_tokens))
    ours = {n: turns for writer, n, turns in timed if writer.name == OURS and writer.weights == STORED}
    return {
        "prompt_tokens": n_prompt,
        "tokens": n_tokens,
        "bandwidth": {"bytes_s": bandwidth.bytes_s, "is_stated": bandwidth.is_stated},
        "versions": versions,
        "batches": [
            figures(writer, engines, n_rows, n_prompt + n_tokens / 2, turns[1:], ours[n_rows][1:], bandwidth.bytes_s)
            for writer, n_rows, turns in timed
        ],
    }


def require_context(model: ModelConfig, n_prompt: int | None, n_tokens: int | None) -> tuple[int, int]:
    """Tokens of a prompt and of what follows it, which fit the context. Raises InputError where they do not."""
    n_prompt = n_prompt or min(model.seq_len // 2, model.seq_len - (n_tokens or 0))
    n_tokens = n_tokens or min(model.seq_len - n_prompt, 64)
    if n_prompt < 1 or n_tokens < 2 or n_prompt + n_tokens > model.seq_len:
        raise InputError(
            f"--prompt-tokens={n_prompt} + --tokens={n_tokens} do not fit model.seq_len={model.seq_len} "
            "with at least 1 and 2 of them; choose others"
        )
    return n_prompt, n_tokens


def make_prompts(turn: int, n_rows: int, n_prompt: int, n_valid: int) -> list[list[int]]:
    """A prompt for each row. None begins as another one did, so each is computed."""
    firsts = [(turn * n_rows + i) % n_valid for i in range(n_rows)]
    return [[first, *((7 * j + first) % n_valid for j in range(1, n_prompt))] for first in firsts]


def figures(
    writer: Writer, engines: dict[str, Engine], n_rows: int, n_context: float, turns: Sequence[Turn],
    ours: Sequence[Turn], bandwidth_bytes_s: float,
) -> Figures:  # fmt: skip
    """Medians over all steps of all turns.

    `of_ours` is its speed over that of our weights as stored, the median over turns; `same_tokens` the share of tokens
    that equal theirs, position by position. Bytes and FLOPs are those of the model, whatever the program reads.
    """
    engine = engines[writer.weights]
    costs = costs_of(engine, n_rows, n_context)
    step_s = median(seconds for turn in turns for seconds in turn.step_s)
    ratios = [median(b.step_s) / median(a.step_s) for a, b in zip(turns, ours, strict=True)]
    pairs = [
        a == b
        for turn, our in zip(turns, ours, strict=True)
        for row, our_row in zip(turn.ids, our.ids, strict=True)
        for a, b in zip(row, our_row, strict=True)
    ]
    device, *_ = jax.tree.leaves(engine.params)[0].devices()  # the mesh's own set: pop would empty it for all
    dtype = str(jnp.dtype(engine.model.dtype))
    return {
        "program": writer.name,
        "weights": writer.weights,
        "rows": n_rows,
        "ttft_s": median(turn.first_s for turn in turns),
        "tpot_s": step_s,
        "tokens_per_s": n_rows / step_s,
        "by_round_s": [median(turn.step_s) for turn in turns],
        "of_ours": median(ratios),
        "same_tokens": sum(pairs) / len(pairs),
        "mbu": costs.step_bytes / step_s / bandwidth_bytes_s,
        "mfu": mfu(costs.step_flops / step_s, device.device_kind, 1, dtype),
        "step_bytes": costs.step_bytes,
        "weight_bytes": costs.weight_bytes,
        "cache_bytes": n_rows * costs.cache_bytes,
    }


def generation_tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows for each number of rows that `time_generation` timed. No MFU where no peak is known."""
    bandwidth, tables = found["bandwidth"], []
    source = "stated" if bandwidth["is_stated"] else "best copy"
    for n_rows in dict.fromkeys(one["rows"] for one in found["batches"]):
        timed = [one for one in found["batches"] if one["rows"] == n_rows]
        title = (
            f"{n_rows} {'row' if n_rows == 1 else 'rows'}, {found['tokens']} tokens after {found['prompt_tokens']}, "
            f"cache of {timed[0]['cache_bytes'] / 1e6:,.1f} MB; "
            f"MBU of {bandwidth['bytes_s'] / 1e9:,.1f} GB/s ({source})"
        )
        rows = [
            [
                one["program"] + ("" if one["weights"] == STORED else f" {one['weights']}"),
                f"{one['ttft_s'] * 1e3:,.1f}", f"{one['tpot_s'] * 1e3:,.2f}", f"{one['tokens_per_s']:,.0f}",
                f"{one['of_ours']:.3g}", f"{one['same_tokens']:.0%}", f"{one['mbu']:.0%}",
                "" if one["mfu"] is None else f"{one['mfu']:.1%}", f"{one['weight_bytes'] / 1e6:,.1f}",
            ]
            for one in timed
        ]  # fmt: skip
        shown = [i for i, name in enumerate(HEADER) if name != "MFU" or any(row[i] for row in rows)]
        tables.append((title, [HEADER[i] for i in shown], [[row[i] for i in shown] for row in rows]))
    return tables
