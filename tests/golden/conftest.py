"""Two trained models beside the repository, their recorded greedy texts, and the real command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from model import Llama
from tests.reference import Reference

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY.parent / "shared" / "models"
# What a launcher above us may have set is not meant for the ranks that a test starts.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
# These models end a story with bos.
END_OF_STORY = 1
# No run here takes a tenth of it; a hang should not hold up the others.
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded greedy run. `tokens` stop before the end token, where one came."""

    prompt: str
    prompt_tokens: list[int]
    tokens: list[int]
    text: str
    finish_reason: str


@cache
def cases_of(name: str) -> list[Case]:
    recorded = json.loads((MODELS / "golden_greedy.json").read_text())[name]
    return [
        Case(one["prompt"], one["prompt_ids"], one["greedy_ids"], one["text"], "stop" if one["stopped"] else "length")
        for one in recorded
    ]


@cache
def reference_of(name: str) -> Reference:
    return Reference(MODELS / name)


def build(name: str, seed: int = 1) -> Llama:
    """A model in this process, on one thread: on a busy machine more threads wait for each other."""
    llama = Llama.build(str(MODELS / name), None, 256, 8, seed=seed, dtype="float32", device="cpu")
    torch.set_num_threads(1)
    return llama


@cache
def llama_of(name: str) -> Llama:
    return build(name)


def run(*words: object) -> str:
    """stdout of a command that ends well; PYTHONPATH as for somebody who works in the repository."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}:\n{done.stderr}"
    return done.stdout


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def torchrun(ranks: int, *words: object) -> str:
    """A port of its own (--standalone), so that runs side by side do not meet."""
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *words)


@pytest.fixture(scope="session", autouse=True)
def trained_models() -> Iterator[None]:
    """Skips everything in this folder where the models are not there."""
    if not (MODELS / "golden_greedy.json").is_file():
        pytest.skip(f"the trained models are not at {MODELS}; they lie beside the repository, not in it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The folder of a model cut for a number of ranks, by `reshard`."""

    @cache
    def folder(name: str, mp: int) -> Path:
        if mp == 1:
            return MODELS / name
        destination = tmp_path_factory.mktemp("cut") / f"{name}-mp{mp}"
        run("-m", "launcher", "reshard", MODELS / name, destination, "--mp", mp)
        return destination

    return folder
