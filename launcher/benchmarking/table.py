"""What `bench` prints for people."""

from collections.abc import Iterator, Sequence

from launcher.amounts import human
from launcher.benchmarking.results import Bench, Result, Size

_HEAD = (
    "MP",
    "batch",
    "first token",
    "prefill tokens/s",
    "of peak FLOPs",
    "decode tokens/s",
    "(lowest to highest run)",
    "of bandwidth",
)


def as_text(bench: Bench) -> str:
    """The report for people."""
    first = bench.results[0]
    weights = "random weights" if bench.random_weights else "from files"
    quantised = "" if bench.quantize == "none" else f", weights in {bench.quantize}"
    lines = [
        f"{bench.source}: {_counted(bench.n_parameters)} parameters ({weights}), dtype {bench.dtype}"
        f"{quantised}; {first.prompt_tokens} + {first.new_tokens} tokens a row",
        f"{_machine(bench)}; {bench.date}",
        *(f"note: {each}" for each in bench.notes),
        "",
        *_columns([_HEAD, *map(_row, bench.results)]),
        "",
        *(line for size in bench.sizes for line in _size_lines(size)),
    ]
    return "\n".join(lines) + "\n"


def _machine(bench: Bench) -> str:
    machine = bench.machine
    cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''} of {machine.processor}"
    return f"{cores if machine.device == 'cpu' else f'{machine.device}, {cores}'}, torch {machine.torch}"


def _row(result: Result) -> tuple[str, ...]:
    return (
        str(result.mp),
        str(result.batch_size),
        _seconds(result.first_token_s),
        _figures(result.prefill_tokens_per_s),
        f"{result.prefill_share_of_peak_flops:.1%}",
        _figures(result.decode_tokens_per_s),
        f"({_figures(result.decode_tokens_per_s_lowest)} to {_figures(result.decode_tokens_per_s_highest)})",
        f"{result.decode_share_of_bandwidth:.1%}",
    )


def _size_lines(size: Size) -> Iterator[str]:
    threads = f"{size.threads} CPU thread{'s' if size.threads > 1 else ''} a rank"
    yield f"MP {size.mp}: {threads}{f', {size.backend}' if size.backend else ''}"
    read = "made up" if size.load_gb_per_s is None else f"{human(size.load_bytes)}, {size.load_gb_per_s:.3g} GB/s"
    first = _seconds(size.first_token_after_loading_s)
    yield f"  loaded in {_seconds(size.load_s)} ({read}); the very first token {first} later"
    yield (
        f"  limits, measured here: {size.peak_flops_per_s / 1e12:.3g} TFLOP/s in a matrix product, "
        f"{human(size.bandwidth_bytes_per_s)}/s of memory read"
    )
    for memory in size.memory:
        yield f"  rank {memory.rank}: {human(memory.peak_bytes)} at most, planned {human(memory.planned_bytes)}"
    if size.left_out:
        yield f"  no memory for batches of {' and '.join(map(str, size.left_out))}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _counted(number: int) -> str:
    return f"{number / 1e9:.3g} billion" if number >= 10**9 else f"{number / 1e6:.3g} million"


def _figures(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells under each other, to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
