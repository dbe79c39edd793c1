"""Healthy tiny checkpoints, made once, and copies of them to break."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import TINY, VOCABULARY, Sizes, train_tokenizer, write_checkpoint
from tests.end_to_end.command import CopyOf, assert_done, complete, run


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tokenizer with four pieces more."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path, VOCABULARY + 4)
    return path.read_bytes()


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory, tokenizer: bytes) -> Callable[[int, Sizes], Path]:
    """A healthy folder of so many shards; never to be written to."""
    made: dict[tuple[int, Sizes], Path] = {}

    def of(mp: int, sizes: Sizes = TINY) -> Path:
        if (mp, sizes) not in made:
            folder = tmp_path_factory.mktemp("healthy") / "ckpt"
            made[mp, sizes] = write_checkpoint(folder, mp, sizes, tokenizer=tokenizer)
        return made[mp, sizes]

    return of


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """The current folder of a command under test: all that it might touch lies below."""
    folder = tmp_path / "case"
    (folder / "tmp").mkdir(parents=True)
    return folder


@pytest.fixture
def copy_of(healthy: Callable[[int, Sizes], Path], case: Path) -> CopyOf:
    """Copies a healthy folder to case/ckpt, where it may be broken."""

    def copy(mp: int = 1, sizes: Sizes = TINY, name: str = "ckpt") -> Path:
        return Path(shutil.copytree(healthy(mp, sizes), case / name))

    return copy


@pytest.fixture(scope="session")
def healthy_answer(healthy: Callable[[int, Sizes], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `complete("ckpt", "--json")` prints for the healthy folder of one shard."""
    outcome = run(complete(healthy(1, TINY), "--json"), tmp_path_factory.mktemp("healthy-answer"))
    assert_done(outcome)
    assert outcome.out.count("\n") == 1
    return outcome.out
