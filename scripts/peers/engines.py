"""Which engines can be measured here, how, and why the others cannot."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from peers.gguf_file import gguf_of
from peers.running import Runner
from peers.timing import Task

from model.checkpoint.checkpoint import Checkpoint

ENGINES = ("shardrun", "transformers", "transformers-static", "llama.cpp", "gpt-fast")
_GGUF = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_QUANTISED = {"int8": "Q8_0", "int4": "Q4_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured, and where the peers are. `task`: that of an engine that takes all cores."""

    engines: tuple[str, ...]
    checkpoint: Checkpoint
    ckpt_dir: Path
    task: Task
    mp: tuple[int, ...]
    work: Path
    llama_cpp_python: str
    gpt_fast: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Who takes part, in the order of turns, and who does not and why."""

    runners: list[Runner] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def field_of(asked: Asked) -> Field:
    """Find out, and convert the weights where a peer needs it."""
    found = Field()
    for engine in asked.engines:
        made = _MAKERS[engine](asked)
        if isinstance(made, str):
            found.skipped[engine] = made
        else:
            found.runners.extend(made)
    return found


def _shardrun(asked: Asked) -> list[Runner]:
    weights = asked.task.dtype if asked.task.quantize == "none" else asked.task.quantize
    return [
        Runner(
            name=f"shardrun MP {ranks}",
            engine="shardrun",
            script="run_shardrun.py",
            weights=weights,
            task=replace(asked.task, threads=max(1, asked.task.threads // ranks)),
            ranks=ranks,
        )
        for ranks in asked.mp
    ]


def _transformers(asked: Asked) -> list[Runner] | str:
    if reason := _missing(sys.executable, "transformers"):
        return reason
    return [_of_transformers(asked, "transformers", static_cache=False)]


def _static(asked: Asked) -> list[Runner] | str:
    if asked.task.device != "cuda":
        return "it compiles for GPUs only"
    if reason := _missing(sys.executable, "transformers"):
        return reason
    return [_of_transformers(asked, "transformers-static", static_cache=True)]


def _of_transformers(asked: Asked, name: str, *, static_cache: bool) -> Runner:
    task = replace(asked.task, quantize="none", static_cache=static_cache)
    return Runner(name=name, engine=name, script="run_transformers.py", weights=task.dtype, task=task)


def _llama_cpp(asked: Asked) -> list[Runner] | str:
    if reason := _missing(asked.llama_cpp_python, "llama_cpp"):
        return f"{reason} (--llama_cpp_python names the Python that has it)"
    if asked.checkpoint.params.rope_scaling is not None:
        return "this script does not write scaled rotary bases to GGUF"
    kind = _QUANTISED.get(asked.task.quantize, _GGUF[asked.task.dtype])
    path = gguf_of(asked.ckpt_dir, kind, asked.work)
    return [
        Runner(
            name="llama.cpp",
            engine="llama.cpp",
            script="run_llama_cpp.py",
            weights=kind,
            task=replace(asked.task, engine_path=str(path)),
            python=asked.llama_cpp_python,
            sees_us=False,
        )
    ]


def _gpt_fast(asked: Asked) -> list[Runner] | str:
    if asked.task.device != "cuda":
        return "it is made for GPUs: without one it would be measured at its worst"
    if not (Path(asked.gpt_fast) / "generate.py").exists() or not asked.gpt_fast:
        return f"--gpt_fast is {asked.gpt_fast!r}; wanted the folder with its generate.py and model.py"
    if not (asked.ckpt_dir / "consolidated.00.pth").exists() or asked.checkpoint.mp != 1:
        return "the weights are not in one file of Meta's layout"
    task = replace(asked.task, quantize="none", engine_path=str(Path(asked.gpt_fast).resolve()))
    return [
        Runner(
            name="gpt-fast",
            engine="gpt-fast",
            script="run_gpt_fast.py",
            weights=task.dtype,
            task=task,
            sees_us=False,
        )
    ]


def _missing(python: str, package: str) -> str:
    """Why this Python has not the package; '' where it has."""
    try:
        done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python} cannot be started: {error.strerror}"
    return "" if done.returncode == 0 else f"{python} has no working {package}"


_MAKERS = {
    "shardrun": _shardrun,
    "transformers": _transformers,
    "transformers-static": _static,
    "llama.cpp": _llama_cpp,
    "gpt-fast": _gpt_fast,
}
