"""The kernels of a compiled step in print: the costliest of them, and what their sum says."""

from rich.table import Table

from jaxgpt.errors import Failure
from jaxgpt.plan.forecast import Forecast
from jaxgpt.plan.timing import Cost, Timing
from jaxgpt.run.console import PlainConsole, console


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def describe_timing(forecast: Forecast) -> str:
    """The forecast on one line: step, tokens/s, MFU, and what takes the time."""
    timing, likely = forecast.timing, forecast.likely
    if not timing or not likely:
        return "needs a compiled program"
    parts = ", ".join(f"{name} {seconds(value)}" for name, value in timing.seconds_by().items() if value)
    return f"{seconds(timing.step_s)} a step, {likely.tokens_per_s:,.0f} tokens/s, MFU {likely.mfu:.0%} causal; {parts}"


def print_kernels(forecast: Forecast, n_rows: int) -> None:
    """The costliest kernels of the forecast.

    Raises:
      Failure: there is no compiled program.
    """
    timing = forecast.timing
    if not timing:
        raise Failure(f"--kernels needs a compiled program of the step; {forecast.topology.name} gave none")
    table = Table(title=f"kernels of one step on {forecast.topology.name}", title_justify="left", box=None)
    for name in ("kernel", "source"):
        table.add_column(name, no_wrap=True)
    for name in ("times", "ms", "share", "GFLOP each", "MB each", "bound by"):
        table.add_column(name, justify="left" if name == "bound by" else "right", no_wrap=True)
    for cost in timing.costs[:n_rows]:
        table.add_row(*describe_cost(cost, timing))
    wide = PlainConsole(width=max(console.width, 170), force_terminal=console.is_terminal, quiet=console.quiet)
    with wide.capture() as captured:
        wide.print(table)
    console.out(captured.get(), end="", highlight=False)
    shown_s = sum(cost.seconds for cost in timing.costs[:n_rows])
    model_flops = forecast.step_flops / forecast.topology.n_devices
    console.print(
        f"{min(n_rows, len(timing.costs))} of {len(timing.costs)} rows, {shown_s / timing.step_s:.0%} of "
        f"{seconds(timing.step_s)}; {timing.n_launches:,} kernels; products and attention {timing.product_flops:.3g} "
        f"FLOPs on a device, the model counts {model_flops:.3g}",
        style="dim",
    )


def describe_cost(cost: Cost, timing: Timing) -> tuple[str, ...]:
    """The cells of one row."""
    kernel = cost.kernel
    shapes = " ".join(f"{one.n_batch}x" * (one.n_batch > 1) + f"{one.m}x{one.n}x{one.k}" for one in kernel.products[:2])
    sent = f" {kernel.collective[0]} over {kernel.collective[1]}" if kernel.collective else ""
    n_bytes = kernel.collective[2] if kernel.collective else kernel.n_bytes
    source = f"{kernel.source[:56]} {shapes}{sent}".rstrip()
    return (
        kernel.name[:34], source, f"{kernel.count:,}", f"{cost.seconds * 1e3:.2f}",
        f"{cost.seconds / timing.step_s:.1%}", f"{cost.flops / 1e9:,.1f}" if cost.flops else "",
        f"{n_bytes / 1e6:,.1f}", cost.limit,
    )  # fmt: skip
