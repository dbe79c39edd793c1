"""What is to be measured, and what is refused before torch is loaded."""

import json
import sys
from pathlib import Path

import pytest

from launcher.benchmarking.task import Task, read_task
from parallel.environment import Environment
from parallel.errors import RefusedError
from tests.checkpoints import TINY

UNDER_TORCHRUN = Environment(rank=1, world_size=2, local_rank=1, local_world_size=2, launched=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.json").write_text(json.dumps(TINY.params()))
    return tmp_path


def asked(folder: Path, env: Environment | None = None, **flags: str) -> Task:
    return read_task([str(folder)], flags, env or Environment())


@pytest.mark.parametrize(("limit", "batches"), [("1", (1,)), ("7", (1,)), ("8", (1, 8)), ("40", (1, 8, 32))])
def test_batches_are_of_1_8_and_32_rows_up_to_the_limit(limit: str, batches: tuple[int, ...], folder: Path) -> None:
    assert asked(folder, max_batch_size=limit).batches == batches


def test_sizes_are_those_asked_for_or_one_or_torchruns(folder: Path) -> None:
    assert asked(folder, mp="4,1").sizes == (4, 1)
    assert asked(folder).sizes == (1,)
    assert asked(folder, UNDER_TORCHRUN).sizes == asked(folder, UNDER_TORCHRUN, mp="2").sizes == (2,)


def test_of_files_that_are_not_there_only_what_a_flag_would_change_is_noted(folder: Path) -> None:
    notes = asked(folder).notes
    assert [note.partition(" ")[0] for note in notes] == ["vocabulary", "files"]
    assert asked(folder, vocab_size="100", dtype="float32").source.params.vocab_size == 100


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"mp": "1,8"}, "cannot cut 4 heads over 8 ranks; choose an MP of 4 or fewer"),
        ({"mp": "0"}, "--mp holds 0; wanted sizes of 1 or more"),
        ({"mp": "1,2,1"}, "--mp holds 1 twice"),
        ({"mp": "[]"}, "--mp holds no size"),
        ({"prompt_tokens": "1048576"}, "are 1048640 tokens; wanted 1048576 together at most"),
        ({"new_tokens": "1"}, "--new_tokens is '1'; wanted a whole number of 2 to 1048576"),
        ({"max_batch_size": "0"}, "--max_batch_size is '0'; wanted"),
        ({"quantize": "int3"}, "--quantize is 'int3'; wanted none, int8 or int4"),
        ({"plot": "nowhere/rates.png"}, "--plot nowhere/rates.png: there is no folder nowhere"),
        ({"plot": "rates.pdf"}, r"--plot is rates.pdf; wanted a file whose name ends in \.png"),
        ({"output": "."}, r"--output \.: is a folder"),
        ({"temperature": "1"}, "--temperature is not a flag of bench"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(flags: dict[str, str], said: str, folder: Path) -> None:
    with pytest.raises(RefusedError, match=said):
        asked(folder, **flags)


def test_a_model_that_cannot_be_found_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="nowhere: does not exist"):
        asked(tmp_path / "nowhere")
    with pytest.raises(RefusedError, match=r"bench wants one checkpoint folder or params\.json.*unexpected '2'"):
        read_task(["ckpt", "2"], {}, Environment())


def test_a_size_other_than_torchruns_is_refused(folder: Path) -> None:
    with pytest.raises(RefusedError, match="--mp is 1,2 but 2 ranks were started"):
        asked(folder, UNDER_TORCHRUN, mp="1,2")


def test_a_picture_without_matplotlib_is_refused_with_the_extra_that_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RefusedError, match=r"--plot needs the package matplotlib.*shardrun\[bench\]"):
        asked(folder, plot=str(folder / "rates.png"))
