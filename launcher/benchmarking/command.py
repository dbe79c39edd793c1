"""The `bench` command: each MP size with ranks of its own, and all results in one."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from launcher.benchmarking.delivery import deliver
from launcher.benchmarking.results import Bench, merged
from launcher.benchmarking.task import Task, read_task
from launcher.command import Arguments, Command
from launcher.console import say
from launcher.ranks.supervisor import Run, supervise
from launcher.settings.bench_options import BenchOptions
from launcher.settings.options import ParallelSection
from launcher.settings.schema import settings_of
from parallel.environment import Environment

# What is not for the ranks of one size.
_OF_ALL_SIZES = ("mp", "plot", "output", "json")


def bench_command(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Arguments = ()) -> int:
    """Run `bench CKPT_DIR|params.json`; the exit code."""
    task = read_task(words, flags, env)
    if env.launched or task.sizes == (1,):
        from launcher.benchmarking.rank import run_rank  # loads torch: only now, when the task is known to be good

        return run_rank(task, env)
    found: list[Bench] = []
    with tempfile.TemporaryDirectory(prefix="shardrun-bench-") as folder:
        for mp in task.sizes:
            if len(task.sizes) > 1:
                say(f"MP {mp} (size {len(found) + 1} of {len(task.sizes)})")
            output = Path(folder) / f"mp{mp}.json"
            if code := _run_size(task, mp, output):
                return code
            found.append(Bench.from_json(output.read_text(encoding="utf-8")))
    deliver(merged(found), task.options)
    return 0


def _run_size(task: Task, mp: int, output: Path) -> int:
    """Start ranks of this size, which leave what they measured in `output`; the exit code."""
    options = task.options
    flags = {
        field.name: value
        for field in fields(options)
        if field.name not in _OF_ALL_SIZES and (value := getattr(options, field.name)) is not None
    }
    flags |= {"mp": mp, "output": output}
    arguments = ["bench", task.path, *(f"--{name}={value}" for name, value in flags.items())]
    parallel = ParallelSection(timeout_s=options.timeout_s)
    return supervise(Run(arguments=arguments, ranks=mp, run_id="", parallel=parallel))


BENCH = Command(
    "shardrun bench CKPT_DIR|params.json [--mp 1,2]",
    "measures how fast a model is here, beside the machine's limits (with random weights where there are none)",
    lambda: settings_of(BenchOptions),
    bench_command,
)
