"""A file of answers: whole lines or none, and nobody goes on with a file that is another run's."""

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import launcher.generating.answer_file
from launcher.generating.answer_file import AnswerFile, Origin, check_output
from parallel import RefusedError

ORIGIN = Origin(
    settings={"temperature": 0.6, "stop": ["日本"]}, digests={"another checkpoint": "abc"}, places={"ranks": 2}
)
# Three requests, of which the second has two answers; and how their lines begin.
BEGINNINGS = [['{"index": 0, "prompt": "a"'], ['{"index": 1, "s": 0', '{"index": 1, "s": 1'], ['{"index": 2, "p": "é"']]
ANSWERS = ["".join(f'{beginning}, "tokens": [1, 2]}}\n' for beginning in lines) for lines in BEGINNINGS]
WHOLE = "".join(ANSWERS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.run")


def begin(file: AnswerFile, origin: Origin = ORIGIN, beginnings: Sequence[Sequence[str]] = BEGINNINGS) -> int:
    return file.begin(origin, iter(beginnings), len(beginnings))


def killed_after(path: Path, size: int) -> None:
    """Leave what a run leaves that was killed when it had written so many bytes."""
    with closing(AnswerFile(path, resume=False)) as file:
        begin(file)
        file.write(WHOLE)
    os.truncate(path, size)


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def refusal(path: Path, origin: Origin = ORIGIN, beginnings: Sequence[Sequence[str]] = BEGINNINGS) -> str:
    """How it is refused to go on with a file, by which nothing changes."""
    before = contents(path.parent)
    with pytest.raises(RefusedError) as refused, closing(AnswerFile(path, resume=True)) as file:
        begin(file, origin, beginnings)
    assert contents(path.parent) == before
    assert str(refused.value).startswith(f"--output {path}: ")
    return str(refused.value).removeprefix(f"--output {path}: ")


def test_beside_an_unfinished_file_stands_what_it_was_begun_with(path: Path) -> None:
    with closing(AnswerFile(path, resume=False)) as file:
        assert begin(file) == 0
        for count, lines in enumerate(ANSWERS, 1):
            file.write(lines)
            assert path.read_text() == "".join(ANSWERS[:count])
            assert json.loads(beside(path).read_text())["settings"] == ORIGIN.settings
        file.finish()
    assert contents(path.parent) == {path.name: WHOLE.encode()}


def test_a_run_that_was_killed_at_any_byte_is_gone_on_with_behind_the_last_whole_answer(path: Path) -> None:
    ends = [len("".join(ANSWERS[:count]).encode()) for count in range(len(ANSWERS) + 1)]
    for size in range(ends[-1] + 1):
        killed_after(path, size)
        with closing(AnswerFile(path, resume=True)) as file:
            done = begin(file)
            assert done == max(count for count, end in enumerate(ends) if end <= size)
            assert path.stat().st_size == ends[done]
            file.write("".join(ANSWERS[done:]))
            file.finish()
        assert contents(path.parent) == {path.name: WHOLE.encode()}
        path.unlink()


@pytest.mark.parametrize("beside_too", [True, False], ids=["with_its_settings", "without_them"])
def test_a_whole_file_has_nothing_left_to_be_answered(
    beside_too: bool, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("shardrun"), "propagate", True)
    killed_after(path, len(WHOLE.encode()))
    if not beside_too:
        beside(path).unlink()
    with closing(AnswerFile(path, resume=True)) as file:
        assert begin(file) == len(BEGINNINGS)
        file.finish()
    assert contents(path.parent) == {path.name: WHOLE.encode()}
    assert f"{path} holds all of 3 answers already" in caplog.text


def test_a_file_that_holds_something_is_not_written_to_unless_it_is_to_be_gone_on_with(path: Path) -> None:
    path.write_text("mine")
    for refuse in (lambda: AnswerFile(path, resume=False), lambda: check_output(path, resume=False)):
        with pytest.raises(RefusedError, match=r"holds something already; go on with it \(--resume\), or give another"):
            refuse()
    check_output(path, resume=True)
    assert contents(path.parent) == {path.name: b"mine"}


def test_an_empty_file_is_begun_with_whatever_stands_beside_it(path: Path) -> None:
    for resume in (False, True):
        path.write_text("")
        beside(path).write_text("of a run whose file was emptied")
        with closing(AnswerFile(path, resume)) as file:
            assert begin(file) == 0
            assert json.loads(beside(path).read_text())["settings"] == ORIGIN.settings


def test_another_setting_is_refused_by_its_name_with_both_values(path: Path) -> None:
    killed_after(path, 60)
    for name, value, says in (
        ("temperature", 0.8, "was begun with temperature 0.6, and this run has 0.8; go on with the same, or "),
        ("stop", None, 'was begun with stop ["日本"], and this run has null; '),
        ("seed", 2, "was begun with seed null, and this run has 2; "),
    ):
        assert says in refusal(path, replace(ORIGIN, settings={**ORIGIN.settings, name: value}))


def test_another_checkpoint_is_refused(path: Path) -> None:
    killed_after(path, 60)
    said = refusal(path, replace(ORIGIN, digests={"another checkpoint": "abd"}))
    assert said == "was begun with another checkpoint; go on with the same, or give another name"


def test_another_number_of_ranks_is_noted_only(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("shardrun"), "propagate", True)
    killed_after(path, 60)
    with closing(AnswerFile(path, resume=True)) as file:
        assert begin(file, replace(ORIGIN, places={"ranks": 1})) == 1
    assert "was begun with ranks 2, and this run has 1: numbers may be rounded differently" in caplog.text


def test_lines_of_other_requests_are_refused_by_their_number(path: Path) -> None:
    killed_after(path, len(WHOLE.encode()))
    other = ['{"index": 2, "p": "e"']
    said = refusal(path, beginnings=[*BEGINNINGS[:2], other])
    assert said == "line 4 answers another request than this run's; give the same requests as before, or another name"
    assert refusal(path, beginnings=BEGINNINGS[:2]).startswith("holds more than the answers to the 2 requests of this")
    assert "line 2 answers another request" in refusal(path, beginnings=[BEGINNINGS[0], BEGINNINGS[2]])


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"index": 0, "prompt": "ab"', ANSWERS[0] + "my notes"])
def test_what_was_never_an_answer_is_not_cut_off(content: str, path: Path) -> None:
    path.write_text(content)
    assert "line " in refusal(path)
    beside(path).write_text(json.dumps({"settings": ORIGIN.settings, "digests": ORIGIN.digests, "places": {}}))
    assert "line " in refusal(path)


def test_an_unfinished_file_without_its_settings_is_refused(path: Path) -> None:
    killed_after(path, len((ANSWERS[0] + ANSWERS[1]).encode()))
    beside(path).unlink()
    said = refusal(path)
    assert said.startswith("holds 2 of 3 answers, but out.jsonl.run, which says with what settings they were made, is")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"settings": 5', b'{"other": {}}', b"\xff"])
def test_settings_that_cannot_be_read_are_refused(content: bytes, path: Path) -> None:
    killed_after(path, 60)
    beside(path).write_bytes(content)
    assert "out.jsonl.run cannot be read" in refusal(path)


def test_two_runs_do_not_write_one_file_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.generating.answer_file, "_LOCK_PATIENCE_S", 0.1)
    with closing(AnswerFile(path, resume=True)) as file:
        begin(file)
        with pytest.raises(RefusedError, match="is being written by another run; wait for its end, or give another"):
            AnswerFile(path, resume=True)
        file.write(ANSWERS[0])
    assert contents(path.parent).keys() == {"out.jsonl", "out.jsonl.run"}


@pytest.mark.parametrize("lines", ["", ANSWERS[0]], ids=["that_removes_its_file", "that_leaves_its_file"])
def test_a_run_that_is_just_ending_is_waited_for(lines: str, path: Path) -> None:
    before = AnswerFile(path, resume=False)
    begin(before)
    before.write(lines)
    ending = threading.Thread(target=lambda: (time.sleep(0.3), before.close()))
    ending.start()
    with closing(AnswerFile(path, resume=True)) as file:
        assert begin(file) == len(lines[:1])
        file.write("".join(ANSWERS[len(lines[:1]) :]))
        file.finish()
    ending.join()
    assert contents(path.parent) == {path.name: WHOLE.encode()}


def test_where_nothing_was_written_nothing_is_left(path: Path) -> None:
    with closing(AnswerFile(path, resume=False)) as file:
        begin(file)
    assert contents(path.parent) == {}
    path.write_text("")
    with closing(AnswerFile(path, resume=False)) as file:
        begin(file)
    assert contents(path.parent) == {path.name: b""}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may be larger than a mebibyte: the system then fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_lines_that_a_disk_does_not_take_are_absent_and_those_before_are_kept(path: Path) -> None:
    long = [f'{lines[0]}, "text": "{"x" * 600_000}"}}\n' for lines in (BEGINNINGS[0], BEGINNINGS[2])]
    with closing(AnswerFile(path, resume=False)) as file:
        begin(file, beginnings=[BEGINNINGS[0], BEGINNINGS[2]])
        file.write(long[0])
        with pytest.raises(RefusedError, match="the answers cannot be written: File too large; mend that and go on wi"):
            file.write(long[1])
    assert path.read_text() == long[0]
    with closing(AnswerFile(path, resume=True)) as file:
        assert begin(file, beginnings=[BEGINNINGS[0], BEGINNINGS[2]]) == 1


def test_a_device_is_written_to_and_has_nothing_beside_it() -> None:
    for resume in (False, True):
        with closing(AnswerFile(Path("/dev/null"), resume)) as file:
            assert begin(file) == 0
            file.write(WHOLE)
            assert not Path("/dev/null.run").exists()
            file.finish()
    with closing(AnswerFile(Path("/dev/full"), resume=False)) as file:
        begin(file)
        with pytest.raises(RefusedError, match="the answers cannot be written: No space left on device"):
            file.write(WHOLE)
    assert Path("/dev/null").exists()
    assert Path("/dev/full").exists()


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _nothing(_path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (_folder, "out", "is a folder; wanted a file"),
        (_pipe, "out", "is a pipe, socket or disk; wanted a file"),
        (_nothing, "no/out", "the folder {tmp}/no does not exist; make it, or give another name"),
    ],
)
def test_what_no_answers_can_be_written_to_is_refused(
    make: Callable[[Path], None], name: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    make(path)
    for refuse in (lambda: AnswerFile(path, resume=True), lambda: check_output(path, resume=True)):
        with pytest.raises(RefusedError) as refused:
            refuse()
        assert str(refused.value).startswith(f"--output {path}: {says.format(tmp=tmp_path)}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_or_folder_without_permission_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(RefusedError, match="cannot be written: Permission denied"):
            AnswerFile(path, resume=False)
    finally:
        path.parent.chmod(0o700)


def test_a_file_that_is_removed_while_it_is_written_is_told_and_not_written_on(path: Path) -> None:
    with closing(AnswerFile(path, resume=False)) as file:
        begin(file)
        file.write(ANSWERS[0])
        path.unlink()
        with pytest.raises(RefusedError, match=r"--output .*out\.jsonl: was removed while it was being written"):
            file.write(ANSWERS[1])
