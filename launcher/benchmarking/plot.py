"""The rates as a picture. The one door to matplotlib, which is optional (`bench` extra)."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launcher.benchmarking.results import Bench, Result

_WIDTH_IN, _HEIGHT_IN, _DOTS_PER_IN = 10, 4, 120

Rate = Callable[[Result], float]


def draw(bench: Bench, path: Path) -> None:
    """A PNG of decode and prefill rates by batch size, a line for each MP size and a dashed one for its limit.
    OSError where it cannot be written."""
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    decode, prefill = figure.subplots(1, 2)
    _lines(
        decode,
        bench,
        "decode tokens/s (dashed: at the memory's bandwidth)",
        lambda result: result.decode_tokens_per_s,
        lambda result: result.decode_tokens_per_s / result.decode_share_of_bandwidth,
    )
    _lines(
        prefill,
        bench,
        "prefill tokens/s (dashed: at peak FLOPs)",
        lambda result: result.prefill_tokens_per_s,
        lambda result: result.prefill_tokens_per_s / result.prefill_share_of_peak_flops,
    )
    quantised = "" if bench.quantize == "none" else f", {bench.quantize}"
    device = bench.machine.processor if bench.machine.device == "cpu" else bench.machine.device
    figure.suptitle(f"{bench.source}, {bench.dtype}{quantised}, {device}, {bench.date[:10]}", fontsize="medium")
    figure.savefig(path, format="png", dpi=_DOTS_PER_IN)


def _lines(axes: Axes, bench: Bench, title: str, rate: Rate, limit: Rate) -> None:
    for number, size in enumerate(bench.sizes):
        results = [result for result in bench.results if result.mp == size.mp]
        batches, colour = [result.batch_size for result in results], f"C{number}"
        axes.plot(batches, [rate(result) for result in results], color=colour, marker="o", label=f"MP {size.mp}")
        axes.plot(batches, [limit(result) for result in results], color=colour, marker="_", linestyle="dashed")
    every = sorted({result.batch_size for result in bench.results})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(every, [str(batch) for batch in every])
    axes.set_xlabel("rows")
    axes.grid(which="both", alpha=0.3)
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
