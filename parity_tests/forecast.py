"""The forecast of `jaxgpt plan` against public step times: the error, and the rates that are fitted to them.

python -m parity_tests.forecast                     table, from the kernels stored in forecast_kernels.json
python -m parity_tests.forecast --compile [NAME]    compile these programs with today's source and store them

The figures of cards are PyTorch's, compiled, for the same model, batch and card; the forecast is of this project's
program. So the error holds both what the forecast misses and how the two programs differ: nanochat and track 3 split
Muon over their cards, here each card computes it whole (9 % of the forecast of d32, 5 % of d20). The figures of a
processor are this project's own.

One rate is fitted for each kind of card, the fraction of the peak that large products reach. Left out: the forecast of
each figure with that rate fitted to the others alone; where a kind of card has one figure, with the median rate of the
other kinds.
"""

import dataclasses
import functools
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax

from jaxgpt import config as config_lib
from jaxgpt.config import Config
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.hardware import Device
from jaxgpt.config.steps import Plan
from jaxgpt.parallel.mesh import count_batch_devices, make_mesh
from jaxgpt.plan.compiler import CompileCache
from jaxgpt.plan.forecast import place
from jaxgpt.plan.kernels import Kernel, Product, list_kernels
from jaxgpt.plan.timing import RATES, Rates, time_step
from jaxgpt.plan.topology import CACHE, Topology, parse_topology
from jaxgpt.training.programs import lower_stage
from jaxgpt.training.step import make_step

HERE = Path(__file__).parent
STORE = HERE / "forecast_kernels.json"
EPYC = Topology("2 cores of an EPYC", Device("epyc", (), {"float32": 211e9}, 24 << 30, 24 << 30, 40e9, 0.0, 0.0), 1, "")
"""Where docs/benchmarks.md was measured, idle: two cores with 32 float32 FLOPs a cycle at 3.3 GHz."""
PROCESSOR = Rates(products=0.72, attention=0.66, memory=0.85, launch_s=5e-6)
FRACTIONS = tuple(n / 100 for n in range(40, 122, 2))
"""Of the peak, tried for large products."""


@dataclass(frozen=True)
class Public:
    """A published time of one optimizer step."""

    name: str
    config: str
    device: str
    step_s: float
    source: str
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def topology(self) -> Topology:
        return EPYC if self.device == EPYC.name else parse_topology(self.device)

    @property
    def derived(self) -> Config:
        config = config_lib.load(HERE.parent / "configs" / f"{self.config}.py")
        return place(apply_overrides(config, self.overrides), self.topology).largest_stage()

    @property
    def kind(self) -> str:
        """The key of RATES that this card has; a processor's name."""
        return next((name for name in RATES if self.device.startswith(name)), self.device)

    @property
    def rates(self) -> Rates:
        return RATES.get(self.kind, PROCESSOR)


def _gpt2(rows: int) -> dict[str, str]:
    return {"train.batch_tokens": "524288", "train.micro_batch_size": str(rows)}


_RENTED = "GPT-2 124M, torch 2.8, single rented cards (header of a public training script)"
_SIMPLE = "modded-nanogpt, track 3, logs"
_HERE = "docs/benchmarks.md: jaxgpt, the least"
_D20 = {"model.vocab_size": "65536"}
PUBLIC = (
    Public("GPT-2 124M, 32 rows", "gpt2_124m", "a100-80gb", 2.571, _RENTED, _gpt2(32)),
    Public("GPT-2 124M, 32 rows", "gpt2_124m", "h100", 1.147, _RENTED, _gpt2(32)),
    Public("GPT-2 124M, 64 rows", "gpt2_124m", "h200", 1.059, _RENTED, _gpt2(64)),
    Public("GPT-2 124M, 64 rows", "gpt2_124m", "b200", 0.667, _RENTED, _gpt2(64)),
    Public("GPT-2 124M, 16 rows", "gpt2_124m", "l4", 12.970, _RENTED, _gpt2(16)),
    Public("track 3", "track3", "a100-80gbx8", 0.348, _SIMPLE),
    Public("track 3", "track3", "h100x8", 0.154, _SIMPLE),
    Public("track 3", "track3", "h200", 1.0707, _SIMPLE),
    Public("nanochat d20", "speedrun_d20", "a100-80gbx8", 0.993, "nanochat pull request 147", _D20),
    Public("nanochat d20", "speedrun_d20", "h100x8", 0.487, "nanochat, speedrun walkthrough", _D20),
    Public("nanochat d20, 4 rows", "speedrun_d20", "rtx4090", 13.777, "nanochat issue 157",
           {**_D20, "train.micro_batch_size": "4"}),
    Public("nanochat d32, 8 rows", "speedrun_d20", "h100x8", 1.574, "nanochat, d32 walkthrough",
           {**_D20, "model.depth": "32", "train.micro_batch_size": "8", "train.batch_tokens": "524288"}),
    Public("quickstart", "quickstart", EPYC.name, 0.105, _HERE, {"model.vocab_size": "96"}),
    Public("shakespeare_char_cpu", "shakespeare_char_cpu", EPYC.name, 0.0363, _HERE, {"model.vocab_size": "65"}),
    Public("nanochat_cpu", "nanochat_cpu", EPYC.name, 0.613, _HERE, {"model.vocab_size": "4096"}),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One figure and its forecasts."""

    public: Public
    kernels: tuple[Kernel, ...]
    config: Config

    def forecast_s(self, products: float | None = None) -> float:
        """With the rates of `timing`, or with another fraction for large products."""
        known = self._seconds
        if products not in known:
            rates = self.public.rates
            if products is not None:
                rates = dataclasses.replace(rates, products=products)
            known[products] = time_step(self.kernels, self.config, self.public.topology, rates).step_s
        return known[products]

    @functools.cached_property
    def _seconds(self) -> dict[float | None, float]:
        return {}


def key_of(public: Public) -> str:
    return f"{public.name} on {public.device}"


def pack(kernels: tuple[Kernel, ...]) -> list[list]:
    """Kernels without their names, those alike in one row: small enough to be stored beside the tests."""
    counts: dict[Kernel, int] = {}
    for kernel in kernels:
        bare = dataclasses.replace(kernel, name="", source="", count=0)
        counts[bare] = counts.get(bare, 0) + kernel.count
    return [
        [count, one.n_bytes, [list(asdict(product).values()) for product in one.products], one.attention,
         one.collective, one.beside]
        for one, count in counts.items()
    ]  # fmt: skip


def unpack(rows: list[list]) -> tuple[Kernel, ...]:
    return tuple(
        Kernel(
            "", "", count, n_bytes, tuple(Product(*product) for product in products), attention, tuple(collective),
            beside and tuple(beside),
        )
        for count, n_bytes, products, attention, collective, beside in rows
    )  # fmt: skip


def read_rows() -> list[Row]:
    """The figures whose program is stored."""
    stored = json.loads(STORE.read_text(encoding="utf-8"))
    return [
        Row(public, unpack(stored[key_of(public)]), public.derived) for public in PUBLIC if key_of(public) in stored
    ]


def fit(rows: list[Row]) -> float:
    """The fraction of the peak with the least sum of errors, each the logarithm of forecast over measured."""
    return min(
        FRACTIONS, key=lambda tried: sum(abs(math.log(row.forecast_s(tried) / row.public.step_s)) for row in rows)
    )


def leave_out(row: Row, rows: list[Row]) -> float:
    """Seconds that the forecast gives without having seen this figure."""
    kinds: dict[str, list[Row]] = {}
    for other in rows:
        if other is not row:
            kinds.setdefault(other.public.kind, []).append(other)
    if row.public.kind in kinds:
        return row.forecast_s(fit(kinds[row.public.kind]))
    return row.forecast_s(statistics.median(fit(group) for group in kinds.values()))


def errors(rows: list[Row]) -> list[tuple[float, float]]:
    """Of each figure: forecast over measured less one, with the rates in use, and left out."""
    return [(row.forecast_s() / row.public.step_s - 1, leave_out(row, rows) / row.public.step_s - 1) for row in rows]


def medians(rows: list[Row]) -> tuple[float, float]:
    """Median absolute errors: with the rates in use, and left out."""
    used, left = zip(*errors(rows), strict=True)
    return statistics.median(map(abs, used)), statistics.median(map(abs, left))


def write_table(rows: list[Row]) -> str:
    lines = ["| program | device | measured, ms | forecast, ms | error | left out | source |",
             "|---|---|--:|--:|--:|--:|---|"]  # fmt: skip
    for row, found in zip(rows, errors(rows), strict=True):
        one = row.public
        told = [f"{error:+.0%}" for error in found]
        lines.append(
            f"| {one.name} | {one.device} | {one.step_s * 1e3:,.0f} | {row.forecast_s() * 1e3:,.0f} | "
            f"{' | '.join(told)} | {one.source} |"
        )
    used, left = medians(rows)
    kinds = sorted({row.public.kind for row in rows})
    fitted = ", ".join(
        f"{kind} {fit(group):.2f} (in use {group[0].public.rates.products:.2f})"
        for kind in kinds
        if (group := [row for row in rows if row.public.kind == kind])
    )
    missing = [key_of(public) for public in PUBLIC if public not in [row.public for row in rows]]
    lines += ["", f"Median error {used:.1%}; left out {left:.1%}. Fitted fraction for products: {fitted}."]
    lines += [f"Not compiled: {', '.join(missing)}."] if missing else []
    return "\n".join(lines)


def compile_programs(part: str) -> None:
    """Compiles the programs whose name has this part, and stores their kernels."""
    stored = json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}
    for public in PUBLIC:
        if part in key_of(public):
            is_here = public.device == EPYC.name
            kernels = compile_here(public) if is_here else compile_absent(public)
            stored[key_of(public)] = pack(kernels)
            write_store(stored)


def compile_absent(public: Public) -> tuple[Kernel, ...]:
    return CompileCache(CACHE).footprints(public.derived, public.topology)[-1].kernels


def compile_here(public: Public) -> tuple[Kernel, ...]:
    """The program of this machine's processor."""
    config = public.derived
    mesh = make_mesh(config.mesh, jax.devices("cpu")[:1])
    with jax.set_mesh(mesh):
        _, lowered = lower_stage(make_step(config, mesh), Plan(config, count_batch_devices(mesh)), 0)
        return list_kernels(lowered.compile().as_text(), 1)


def write_store(stored: dict[str, list]) -> None:
    text = ",\n".join(f" {json.dumps(name)}: {json.dumps(stored[name], separators=(',', ':'))}" for name in stored)
    STORE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    if "--compile" in sys.argv:
        compile_programs(" ".join(sys.argv[sys.argv.index("--compile") + 1 :]))
    print(write_table(read_rows()))
