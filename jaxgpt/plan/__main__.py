"""Says whether a run fits a GPU or TPU, and forecasts its speed.

Compiles the run's real training step for devices that this machine need not have; prints memory, roofline, a forecast
from the compiled kernels, and price. --kernels shows the costliest ones.
Devices: a100-40gb, a100-80gb, h100, h200, b200, rtx3090, rtx4090, l4, t4; v4, v5e, v5p, v6e; counts as in h100x8 or
v5e-256, laid out by --mesh.fsdp and the rest. --device given several times makes one table.

--fit finds the largest micro_batch_size, by stage, under the cheapest remat policy that fits; --max-depth the dial.
--sweep micro_batch_size=2,4,8 remat=none,block is a table and a PNG, in run.dir or as --png FILE says; --portable
configs/*.py says which config compiles for which device, and what it sends; --report docs/memory.md writes the recipes
that people ask about as a page. --memory-fraction is the XLA_CLIENT_MEM_FRACTION that the run will have.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse
from pathlib import Path

from jaxgpt.config.command_line import parse_args
from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import user_path
from jaxgpt.plan.topology import CACHE, parse_topology

PARSER = Parser(
    "jaxgpt plan", __doc__, "--config FILE --device NAME [--section.field=value ...]",
    "--config quickstart --device h100 --fit", takes_config=True,
)  # fmt: skip
PARSER.add_argument(
    "--device", action="append", default=[], metavar="NAME", help="a100-40gb, h100x8, v5e-256; several make a table"
)
PARSER.add_argument("--fit", action="store_true", help="find the largest micro_batch_size, by stage")
PARSER.add_argument("--max-depth", action="store_true", help="find the deepest nanochat")
PARSER.add_argument("--estimate", action="store_true", help="without a compiler")
PARSER.add_argument("--kernels", nargs="?", const=20, type=int, metavar="N", help="table of the costliest kernels (20)")
PARSER.add_argument("--sweep", nargs="+", metavar="X=1,2", help="all combinations of settings, as table and PNG")
PARSER.add_argument("--portable", nargs="+", metavar="FILE", help="which config compiles for which device")
PARSER.add_argument("--report", metavar="FILE", type=user_path, help="write the recipes as a page")
PARSER.add_rare("--png", metavar="FILE", type=user_path, default="", help="picture of --sweep (in run.dir)")
PARSER.add_argument("--dollars-per-hour", metavar="N", type=float, help="price of a device")
PARSER.add_argument("--memory-fraction", metavar="F", type=float, help="XLA_CLIENT_MEM_FRACTION of the run")
PARSER.add_argument("--cache", metavar="DIR", type=user_path, default=str(CACHE), help="(~/.cache/jaxgpt/plan)")


def read_arguments(args: list[str]) -> argparse.Namespace:
    given = PARSER.read(args)
    for name in ("dollars_per_hour", "memory_fraction"):
        value = getattr(given, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')}={value:g} is not above 0; choose a positive number")
    if given.kernels is not None:
        if given.kernels < 1:
            raise InputError(f"--kernels={given.kernels} is not above 0; choose a number of rows")
        if len(given.device) != 1 or given.estimate or given.fit or given.max_depth or given.sweep:
            raise InputError("--kernels reads one compiled step; give one --device, without a search or --estimate")
    if given.memory_fraction and given.memory_fraction > 1:
        raise InputError(f"--memory-fraction={given.memory_fraction:g} is above 1; it is a part of the card's memory")
    for name in given.device:
        parse_topology(name)
    if not (given.report or given.portable):
        parse_args(given.settings)
        if not given.device:
            raise InputError("--device is missing; try --device a100-40gb, --device h100x8 or --device v5e-8")
    return given


if __name__ == "__main__":
    answer_early(read_arguments)

import dataclasses
import functools
import itertools
import time
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from jaxgpt import config as config_lib
from jaxgpt.config import Config
from jaxgpt.config.auto import open_settings
from jaxgpt.config.command_line import apply_overrides, field_paths
from jaxgpt.data.shards import open_dataset
from jaxgpt.errors import EXIT_DONE, Failure, run_verb
from jaxgpt.files import is_location
from jaxgpt.plan.compiler import CompileCache
from jaxgpt.plan.estimate import known_gap
from jaxgpt.plan.fit import Fit, fit_depth, fit_micro_batch
from jaxgpt.plan.forecast import Forecast, look, place
from jaxgpt.plan.kernel_table import describe_timing, print_kernels, seconds
from jaxgpt.plan.report import draw_sweep, write_page
from jaxgpt.plan.topology import Topology, missing_plugin
from jaxgpt.run.console import PlainConsole, console, print_facts, working
from jaxgpt.streams import one_line
from jaxgpt.training.memory import GIB, gib

ASSUMED_IDS = 50_304
"""For model.vocab_size=0 where the data does not exist: GPT-2's, padded. Larger than any small tokenizer's."""
PORTABLE_DEVICES = ("h100", "v6e", "h100x8", "v6ex8")


def main(args: list[str]) -> int:
    given = read_arguments(args)
    fraction, dollars = given.memory_fraction, given.dollars_per_hour
    cache = CompileCache(Path(given.cache))
    if given.report:
        write_page(Path(given.report), Asker(cache, fraction, False), fill_vocabulary, Path("configs"))
        return EXIT_DONE
    if given.portable:
        names = given.device or list(PORTABLE_DEVICES)
        return print_portable(given.portable, [parse_topology(name) for name in names], cache, fraction)
    config = parse_args(given.settings)
    topologies = [parse_topology(name) for name in given.device]
    config = fill_vocabulary(config)
    ask = Asker(cache, fraction, given.estimate)
    if given.fit or given.max_depth:
        for topology in topologies:
            search(config, topology, ask, is_depth=given.max_depth, dollars=dollars)
        return EXIT_DONE
    if given.sweep:
        swept = [sweep(config, topology, ask, given.sweep) for topology in topologies]
        draw_sweeps(swept, topologies, given.png, config.run.dir)
        return EXIT_DONE
    if len(topologies) == 1:
        forecast = ask(config, topologies[0])
        print_forecast(forecast, dollars)
        if given.kernels:
            print_kernels(forecast, given.kernels)
        return EXIT_DONE
    rows = ask_each(config, [(topology.name, {}, topology) for topology in topologies], ask)
    print_table(rows, "device", dollars)
    return EXIT_DONE


def ask_each(
    config: Config, cases: list[tuple[str, dict[str, str], Topology]], ask: "Asker"
) -> list[tuple[str, Forecast]]:
    """The forecast of each case: a label, overrides of the config, devices. Impossible cases are reported and left out.

    Raises:
      InputError: all are impossible.
    """
    rows: list[tuple[str, Forecast]] = []
    for label, overrides, topology in cases:
        try:
            rows.append((label, ask(apply_overrides(config, overrides), topology)))
        except (InputError, Failure) as error:
            console.say(f"{label}: {error}", "yellow")
    if not rows:
        raise InputError("no case can run; the reason of each is above")
    return rows


@dataclass
class Asker:
    """Looks at configs, compiler first; says once where it must estimate, and how long compiling takes.

    Attributes:
      n_expected: compilations that a search is likely to need; 0: unknown.
    """

    cache: CompileCache
    fraction: float | None
    wants_estimate: bool
    n_expected: int = 0
    seconds: list[float] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def __call__(self, config: Config, topology: Topology) -> Forecast:
        if open_settings(config):
            count = functools.partial(self.estimate, topology=topology)
            found = fit_micro_batch(config, topology, functools.partial(self, topology=topology), count)
            console.say(f"{topology.name}: {' '.join(f'{name}={value}' for name, value in found.overrides.items())}")
            config = apply_overrides(config, found.overrides)
        install = missing_plugin(topology.platform)
        if install and not self.wants_estimate and topology.platform not in self.warned:
            self.warned.add(topology.platform)
            console.say(
                f"no compiler for {topology.platform} is installed: the figures for {topology.name} are an "
                f"ESTIMATE; for the compiler's: {install}",
                "yellow",
            )
        if self.wants_estimate or install:
            return self.estimate(config, topology)
        is_known = self.cache.knows(place(config, topology), topology)
        if not is_known:
            console.say(f"compiling for {topology.name}: {self._setting(config)}{self._eta()}", "dim")
        begin = time.perf_counter()
        with working(f"compiling for {topology.name}"):
            forecast = look(config, topology, self.cache, self.fraction)
        if not is_known:
            self.seconds.append(time.perf_counter() - begin)
        return forecast

    def estimate(self, config: Config, topology: Topology) -> Forecast:
        return look(config, topology, None, self.fraction)

    def _setting(self, config: Config) -> str:
        rows = " then ".join(map(str, dict.fromkeys(config.stage_rows())))
        return f"seq_len={config.largest_stage().model.seq_len} micro_batch_size={rows} remat={config.train.remat}"

    def _eta(self) -> str:
        left = self.n_expected - len(self.seconds)
        if not self.seconds or left < 1:
            return ""
        return f" (about {left * sum(self.seconds) / len(self.seconds):.0f} s left)"


def fill_vocabulary(config: Config) -> Config:
    """The config with a vocabulary: its own, the data's if they exist, or an assumption, which is printed."""
    if config.model.vocab_size:
        return config
    try:
        n_ids = open_dataset(config.data.dir).vocab_size
    except InputError:
        n_ids = 0
    if not n_ids:
        why = "is not on this machine" if is_location(config.data.dir) else "does not exist"
        console.say(
            f"model.vocab_size=0 and {config.data.dir} {why}: {ASSUMED_IDS:,} is assumed; "
            "--model.vocab_size=N overrides it",
            "dim",
        )
    n_rows = config.model.complete(n_ids or ASSUMED_IDS).vocab_size
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=n_rows))


def price(forecast: Forecast, dollars: float | None) -> str:
    return f"${forecast.dollars(dollars):,.0f}" if dollars else ""


def source(forecast: Forecast) -> str:
    if not forecast.is_estimate:
        return f"compiled in {forecast.compile_s:.0f} s"
    gap = known_gap(forecast.config, forecast.topology.platform)
    return f"ESTIMATE, not compiled{'; ' if gap else ''}{gap}"


def print_forecast(forecast: Forecast, dollars: float | None) -> None:
    """Prints everything about one config on one device."""
    one, bound, config = forecast.footprint, forecast.bound, forecast.config
    mesh = " x ".join(f"{name} {getattr(config.mesh, name)}" for name in ("data", "fsdp", "tensor"))
    n_devices = config.mesh.data * config.mesh.fsdp
    stages = zip(config.stage_batch_tokens(), config.stage_rows(), config.stage_seq_lens(), strict=True)
    n_rows = next(
        rows
        for tokens, rows, seq_len in stages
        if (tokens, seq_len) == (one.n_micro * rows * seq_len * n_devices, one.seq_len)
    )
    sent = "; ".join(f"{count} {kind} over {size}, {gib(sent)}" for kind, size, count, sent in one.collectives)
    is_blind = forecast.is_estimate and forecast.topology.n_devices > 1
    nothing_sent = "not known without a compiler" if is_blind else "none"
    device = forecast.topology.device
    facts = {
        "source": source(forecast),
        "run": f"{config.model.family}, {forecast.n_params:,} parameters, {config.train.dtype}, attention "
        f"{one.attention[0]} ({one.attention[1]}), remat {config.train.remat}",
        "batch": f"{one.n_micro * n_rows * one.seq_len * n_devices:,} tokens = {one.n_micro} x "
        f"{n_rows} rows x {one.seq_len} x {n_devices} device(s)",
        "mesh": f"{forecast.topology.n_devices} x {device.name} ({mesh}); what follows is per device",
        "parameters": gib(one.params_bytes),
        "optimizer state": gib(one.opt_state_bytes),
        "gradients": gib(one.gradients_bytes),
        "activations, temporaries": gib(one.activations_bytes),
        "inputs, program": gib(one.inputs_bytes + one.code_bytes),
        "total": f"{gib(one.total_bytes)} of {gib(forecast.usable_bytes)} usable"
        + (f" ({gib(device.visible_bytes)} on the card)" if device.is_gpu else ""),
        "verdict": forecast.verdict,
        "FLOPs": f"{forecast.flops_per_token / 1e6:,.1f} M per token; "
        f"{forecast.step_flops / 1e12:,.1f} T executed per step",
        "bounds": f"compute {seconds(bound.compute_s)}, memory {seconds(bound.memory_s)}, "
        + (f"collectives {seconds(bound.collectives_s)}" if one.collectives else f"collectives {nothing_sent}"),
        "collectives": sent or nothing_sent,
        "at best": f"{seconds(bound.step_s)} a step ({bound.limit}), {forecast.tokens_per_s:,.0f} tokens/s",
        "forecast": describe_timing(forecast),
        "horizon": f"{forecast.n_steps:,} steps, {forecast.n_tokens:,} tokens, at best {forecast.days:.2f} days"
        + (f", forecast {forecast.likely.days:.2f} days" if forecast.likely else "")
        + (f", {price(forecast, dollars)}" if dollars else ""),
    }  # fmt: skip
    print_facts(f"{Path(config.run.dir).name} on {forecast.topology.name}", facts, {"verdict": "bold"})


def print_table(rows: list[tuple[str, Forecast]], title: str, dollars: float | None = None) -> None:
    """Prints several forecasts, one a line."""
    table = Table(
        title="GiB per device; step, tokens/s and days are the best possible, forecast is a step",
        title_justify="left",
        box=None,
    )
    names = ("params", "optim", "grads", "activ", "total", "usable", "verdict", "step", "tokens/s", "days", "forecast")
    table.add_column(title, no_wrap=True)
    for name in (*names, *(["price"] if dollars else []), "compile"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for label, forecast in rows:
        one = forecast.footprint
        parts = (one.params_bytes, one.opt_state_bytes, one.gradients_bytes, one.activations_bytes + one.code_bytes)
        verdict, style = ("fits", "") if forecast.fits else ("no", "red")
        if forecast.needs_fraction:
            verdict, style = f"fraction {forecast.needs_fraction}", "yellow"
        table.add_row(
            label, *(f"{part / GIB:.2f}" for part in (*parts, one.total_bytes, forecast.usable_bytes)),
            Text(f"{verdict} {forecast.margin_bytes / GIB:+.1f}", style), seconds(forecast.bound.step_s),
            f"{forecast.tokens_per_s:,.0f}", f"{forecast.days:.2f}",
            seconds(forecast.timing.step_s) if forecast.timing else "",
            *([price(forecast, dollars)] if dollars else []),
            "ESTIMATE" if forecast.is_estimate else f"{forecast.compile_s:.0f} s",
        )  # fmt: skip
    wide = PlainConsole(width=max(console.width, 160), force_terminal=console.is_terminal, quiet=console.quiet)
    with wide.capture() as captured:
        wide.print(table)
    console.out(captured.get(), end="", highlight=False)
    if any(forecast.needs_fraction for _, forecast in rows):
        console.print("fraction: it fits with this XLA_CLIENT_MEM_FRACTION in the environment", style="dim")


def search(config: Config, topology: Topology, ask: Asker, *, is_depth: bool, dollars: float | None) -> None:
    """--fit and --max-depth."""
    ask.n_expected, ask.seconds = 4, []
    tried: dict[str, Forecast] = {}
    has_stages = len(set(config.stage_seq_lens())) > 1

    def try_it(candidate: Config) -> Forecast:
        rows = f"micro_batch_size={candidate.train.micro_batch_size} remat={candidate.train.remat}"
        stage = f"seq_len={candidate.model.seq_len} " if has_stages else ""
        label = f"depth={candidate.model.n_layer}" if is_depth else stage + rows
        if label not in tried:
            tried[label] = ask(candidate, topology)
        return tried[label]

    find = fit_depth if is_depth else fit_micro_batch
    found: Fit = find(config, topology, try_it, lambda candidate: ask.estimate(candidate, topology))
    print_table(list(tried.items()), topology.name, dollars)
    micro = " then ".join(str(count) for count in found.n_micro)
    console.print(f"{found.forecast.verdict}; {micro} microbatch(es) a step keep the batch. To paste:")
    pasted = " ".join(f"--{name}={value}" for name, value in found.overrides.items())
    console.say(pasted)


def sweep(config: Config, topology: Topology, ask: Asker, settings: list[str]) -> list[tuple[str, Forecast]]:
    """--sweep: all combinations of some settings, as a table. Returns its rows."""
    names, choices = zip(*(read_setting(text) for text in settings), strict=True)
    combinations = list(itertools.product(*choices))
    ask.n_expected, ask.seconds = len(combinations), []
    cases = [
        (" ".join(f"{name.split('.')[-1]}={value}" for name, value in setting.items()), setting, topology)
        for setting in (dict(zip(names, values, strict=True)) for values in combinations)
    ]
    rows = ask_each(config, cases, ask)
    print_table(rows, topology.name)
    return rows


def draw_sweeps(swept: list[list[tuple[str, Forecast]]], topologies: list[Topology], png: str, run_dir: str) -> None:
    """All devices in one picture, where --png names it; else a picture for each in the run directory."""
    directory = Path("runs", Path(run_dir).name) if is_location(run_dir) else Path(run_dir)
    pictures = {Path(png): swept} if png else {
        Path(directory, f"plan_{topology.name.replace(':', '_')}.png"): [rows]
        for topology, rows in zip(topologies, swept, strict=True)
    }  # fmt: skip
    for path, panels in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_sweep(panels, path)
        console.say(f"picture: {path}")


def read_setting(text: str) -> tuple[str, list[str]]:
    """`remat=none,block` -> the setting's dotted name and its values. The last part of a name will do."""
    name, has_value, values = text.partition("=")
    known = field_paths()
    found = [path for path in known if path == name or path.split(".")[-1] == name]
    if not has_value or not values:
        raise InputError(f"--sweep {text} has no values; write them as in micro_batch_size=2,4,8")
    if len(found) != 1:
        hint = f"may mean {', '.join(found)}; write one of them" if found else f"names no config field {name}"
        raise InputError(f"--sweep {text} {hint}")
    return found[0], values.split(",")


def print_portable(paths: list[str], topologies: list[Topology], cache: CompileCache, fraction: float | None) -> int:
    """--portable: which config compiles for which device, and what its devices send each other."""
    ask = Asker(cache, fraction, False)
    matrix = Table(title="compiles for", title_justify="left")
    sent = Table(title="collectives a step, under fsdp over all devices", title_justify="left")
    matrix.add_column("config", no_wrap=True)
    for topology in topologies:
        matrix.add_column(topology.name)
    for name in ("config", "device", "kind", "over", "times", "bytes a device sends", "parameters whole in float32"):
        sent.add_column(name)
    is_good = True
    for path in paths:
        given, cells = fill_vocabulary(config_lib.load(path)), []
        for topology in topologies:
            try:
                forecast = ask(spread(given, topology), topology)
            except (InputError, Failure) as error:
                is_good = is_good and isinstance(error, InputError)
                cells.append(Text(one_line(f"no: {error}"), "red"))
                continue
            one = forecast.footprint
            cells.append(f"{one.attention[0]}, {one.total_bytes / GIB:.1f} GiB{'' if forecast.fits else ', too large'}")
            whole = sum(one.gathered_whole.values())
            for kind, size, count, n_bytes in one.collectives:
                sent.add_row(Path(path).stem, topology.name, kind, str(size), str(count), gib(n_bytes), gib(whole))
        matrix.add_row(Path(path).stem, *cells)
    console.print(matrix)
    if sent.row_count:
        console.print(sent)
    return EXIT_DONE if is_good else 1


def spread(config: Config, topology: Topology) -> Config:
    """The config with its parameters split over all devices, and a batch that they can share."""
    count = topology.n_devices
    unit = max(config.train.micro_batch_size, 1) * config.model.seq_len * count
    tokens = config.train.batch_tokens and -(-config.train.batch_tokens // unit) * unit
    train = dataclasses.replace(config.train, batch_tokens=tokens, stages=() if count > 1 else config.train.stages)
    mesh = dataclasses.replace(config.mesh, data=1, fsdp=count, tensor=1)
    return dataclasses.replace(config, train=train, mesh=mesh)


if __name__ == "__main__":
    run_verb(main, prints="result")
