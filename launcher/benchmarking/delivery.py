"""The results as they were asked for: a table or one JSON object, in a file or on stdout, and a picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.benchmarking.results import Bench
from launcher.benchmarking.table import as_text
from launcher.console import print_result
from launcher.settings.bench_options import BenchOptions
from parallel.errors import RefusedError


def deliver(bench: Bench, options: BenchOptions) -> None:
    """Write or print the results. RefusedError where that cannot be done."""
    if options.output is not None:
        with _writing("--output", options.output):
            Path(options.output).write_text(bench.as_json(), encoding="utf-8")
    else:
        print_result(bench.as_json() if options.json else as_text(bench))
    if options.plot is not None:
        from launcher.benchmarking.plot import draw  # loads matplotlib, which is optional

        with _writing("--plot", options.plot):
            draw(bench, Path(options.plot))


@contextmanager
def _writing(flag: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RefusedError(f"{flag} {name}: cannot be written: {error.strerror}; name another file") from None
