"""One measurement: a process of its own (or a rank each), and what it found."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.timing import Task

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """How an engine is measured. `name`: as it is printed; `script`: in this folder; `weights`: what it reads."""

    name: str
    engine: str
    script: str
    weights: str
    task: Task
    ranks: int = 1
    python: str = sys.executable
    # A peer that has a package `model` of its own must not find ours.
    sees_us: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run of a runner found, the slowest rank's."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    first_token_s: float
    # Median, shortest and longest.
    step_s: tuple[float, float, float]
    load_s: float
    tokens: tuple[int, ...]
    version: str
    device_name: str


class MeasurementError(Exception):
    """An engine could not be measured; says why."""


def measure(runner: Runner, limit_s: float) -> Measured:
    """Start the runner's processes and wait. MeasurementError where they fail."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [_start(runner, rank, Path(folder)) for rank in range(runner.ranks)]
        try:
            answers = [process.communicate(timeout=limit_s) for process in processes]
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"took more than {limit_s:g} s") from error
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(process.returncode for process in processes):
            raise MeasurementError(_reason([errors for _, errors in answers]))
        return _slowest([json.loads(out.splitlines()[-1]) for out, _ in answers], runner.task)


def _start(runner: Runner, rank: int, folder: Path) -> subprocess.Popen[str]:
    paths = [str(FOLDER.parent), *([str(ROOT)] if runner.sees_us else [])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(runner.task.threads)}
    if runner.ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": runner.ranks, "LOCAL_WORLD_SIZE": runner.ranks}
        environ |= {name: str(value) for name, value in place.items()}
        environ |= {"SHARDRUN_RENDEZVOUS_FILE": str(folder / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [runner.python, str(FOLDER / runner.script), runner.task.as_text()],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _reason(errors: list[str]) -> str:
    """The last line that any of them said."""
    lines = [line for text in errors for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "failed without a word"


def _slowest(answers: list[dict[str, Any]], task: Task) -> Measured:
    found = max(answers, key=lambda answer: statistics.median(answer["steps_s"]))
    steps, first_s = found["steps_s"], max(answer["first_token_s"] for answer in answers)
    median_s = statistics.median(steps)
    return Measured(
        decode_tokens_per_s=task.batch_size / median_s,
        prefill_tokens_per_s=task.batch_size * task.prompt_tokens / first_s,
        first_token_s=first_s,
        step_s=(median_s, min(steps), max(steps)),
        load_s=max(answer["load_s"] for answer in answers),
        tokens=tuple(found["tokens"]),
        version=found["version"],
        device_name=found["device_name"],
    )
