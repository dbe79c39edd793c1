"""Shardrun beside what else runs a Llama, on the same weights in the same run; the ratios count.

    .venv/bin/python scripts/bench_peers.py tinyllama-1.1b --work DIR --mp 1,2 \
        --llama_cpp_python PYTHON_THAT_HAS_IT [--quantize int8] [--repeats 3] [--json FILE]
    .venv/bin/python scripts/bench_peers.py llama-2-7b --work DIR --gpt_fast FOLDER --prompt_tokens 128 --new_tokens 128

The model: a built-in name, a params.json (random weights are written to --work, once), or a checkpoint's folder.
Engines: shardrun at each MP, Hugging Face transformers (transformers-static: with its static cache, which compiles),
llama.cpp (through llama-cpp-python, in bfloat16 or, for --quantize int8 and int4, in Q8_0 and Q4_0) and gpt-fast (its
folder; on a GPU). What is not installed, or cannot be run here, is left out with its reason.

Every measurement is a process of its own, or one a rank. Engines take turns, `--repeats` of them; each runs a few
tokens first. All decode greedily and hand every token to the host, as streaming does. The first token's time is that
of the prefill; the decoding rate is that of the median step. Peers have a thread for each core; shardrun's ranks share
the cores. Needs the `test` extra (transformers, gguf).
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fire
import torch
from peers.comparing import ratio_lines, ratios, spreads, table
from peers.engines import ENGINES, Asked, Field, field_of
from peers.running import Measured, MeasurementError, measure
from peers.timing import Task
from peers.weights import checkpoint_of, name_of

from model.checkpoint.opening import open_checkpoint
from parallel.errors import RefusedError

_ALLOWED = {
    "dtype": ("bfloat16", "float16", "float32"),
    "quantize": ("none", "int8", "int4"),
    "device": ("cpu", "cuda"),
}
_SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "norm_eps", "rope_theta")


def bench(
    model: str,
    engines: Any = ENGINES,
    dtype: str = "bfloat16",
    quantize: str = "none",
    mp: Any = (1,),
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 48,
    repeats: int = 3,
    device: str = "auto",
    work: str = "",
    llama_cpp_python: str = sys.executable,
    gpt_fast: str = "",
    limit_s: float = 1800.0,
    json: str = "",
) -> None:
    """Measure, and print a table, the ratios, and who was left out."""
    task = Task(
        ckpt_dir="",
        dtype=dtype,
        quantize=quantize,
        device=device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu",
        threads=len(os.sched_getaffinity(0)),
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(work or temporary)
        asked = _asked(model, _listed(engines), task, _listed(mp), folder, llama_cpp_python, gpt_fast)
        found = field_of(asked)
        turns = take_turns(found, repeats, limit_s)
    _print(asked, found, turns)
    if json:
        Path(json).write_text(_as_json(asked, found, turns), encoding="utf-8")
    if not any(runner.engine == "shardrun" for runner in found.runners):
        sys.exit(1)


def _listed(given: Any) -> tuple[Any, ...]:
    """Fire reads '1,2' as a tuple, 'a,b' too, and a word alone as itself."""
    if isinstance(given, str):
        return tuple(given.split(","))
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _asked(
    model: str, engines: Sequence[str], task: Task, mp: Sequence[int], work: Path, python: str, gpt_fast: str
) -> Asked:
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown or "shardrun" not in engines:
        raise RefusedError(f"--engines is {','.join(engines)}; wanted shardrun and some of {', '.join(ENGINES[1:])}")
    _check(task)
    # shardrun goes first: its tokens are what the others' are compared with.
    ordered = tuple(engine for engine in ENGINES if engine in engines)
    ckpt_dir = checkpoint_of(str(model), work).absolute()
    checkpoint = open_checkpoint(ckpt_dir)
    sizes = {name: getattr(checkpoint.params, name) for name in _SIZES}
    return Asked(
        engines=ordered,
        checkpoint=checkpoint,
        ckpt_dir=ckpt_dir,
        task=Task(**{**asdict(task), "ckpt_dir": str(ckpt_dir), "sizes": sizes}),
        mp=tuple(map(int, mp)),
        work=work.absolute(),
        llama_cpp_python=python,
        gpt_fast=gpt_fast,
    )


def _check(task: Task) -> None:
    for name, allowed in _ALLOWED.items():
        value = getattr(task, name)
        if value not in allowed:
            raise RefusedError(f"--{name} is {value!r}; wanted {', '.join(allowed)}")
    for name in ("batch_size", "prompt_tokens", "new_tokens"):
        if getattr(task, name) < (2 if name == "new_tokens" else 1):
            raise RefusedError(f"--{name} is {getattr(task, name)}; wanted more: a step of decoding is to be timed")


def take_turns(found: Field, repeats: int, limit_s: float) -> dict[str, list[Measured]]:
    """Every runner once a turn; one that fails leaves the field, with its reason."""
    turns: dict[str, list[Measured]] = {runner.name: [] for runner in found.runners}
    for turn in range(repeats):
        for runner in list(found.runners):
            try:
                run = measure(runner, limit_s)
            except MeasurementError as error:
                found.skipped[runner.name] = str(error)
                found.runners.remove(runner)
                continue
            turns[runner.name].append(run)
            print(f"turn {turn + 1}: {runner.name} {run.decode_tokens_per_s:.3g} tokens/s", file=sys.stderr, flush=True)
    return turns


def _print(asked: Asked, found: Field, turns: dict[str, list[Measured]]) -> None:
    task = asked.task
    print(
        f"{name_of(asked.ckpt_dir)}: {asked.checkpoint.params.n_parameters / 1e9:.3g} billion parameters, batch "
        f"{task.batch_size}, {task.prompt_tokens} + {task.new_tokens} tokens, {_machine(turns)['name']}, "
        f"{task.threads} cores"
    )
    if found.runners:
        print("\n".join(["", *table(found.runners, turns), "", *ratio_lines(ratios(found.runners, turns))]))
    for engine, reason in found.skipped.items():
        print(f"left out: {engine}: {reason}")


def _machine(turns: dict[str, list[Measured]]) -> dict[str, Any]:
    names = [run.device_name for runs in turns.values() for run in runs if run.device_name]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return {"name": names[0] if names else processor, "processor": processor, "system": platform.platform()}


def _as_json(asked: Asked, found: Field, turns: dict[str, list[Measured]]) -> str:
    engines = [
        {
            "name": runner.name,
            "weights": runner.weights,
            "threads": runner.task.threads,
            "version": turns[runner.name][0].version,
            **{what: asdict(spread) for what, spread in spreads(turns[runner.name]).items()},
            "turns": [asdict(run) for run in turns[runner.name]],
        }
        for runner in found.runners
    ]
    fields = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "machine": _machine(turns),
        "task": asdict(asked.task),
        "engines": engines,
        "ratios": ratios(found.runners, turns),
        "left_out": found.skipped,
    }
    return json.dumps(fields, indent=1) + "\n"


if __name__ == "__main__":
    try:
        fire.Fire(bench)
    except RefusedError as error:
        sys.exit(str(error))
