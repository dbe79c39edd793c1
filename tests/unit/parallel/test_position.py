"""Where a rank stands: what it writes, and what its supervisor reads and says of it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from parallel.position import SIZE, Position, Recorder, read_position


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (Position(), "starting"),
        (Position(phase="decoding", step=214), "decoding (step 214)"),
        (Position(phase="loading", step=3, total=8, unit="weight"), "loading (weight 3 of 8)"),
        (Position(phase="prefilling", total=12, unit="token"), "prefilling (12 tokens)"),
        (Position(phase="prefilling", total=1, unit="token"), "prefilling (1 token)"),
        (
            Position(phase="decoding", step=2, collectives=81, waiting=True, operation="all-reduce"),
            "decoding (step 2, in all-reduce number 81)",
        ),
        (
            Position(phase="choosing a device", waiting=True, operation="word from rank 1"),
            "choosing a device (waiting for word from rank 1)",
        ),
        (Position(phase="decoding", step=2, collectives=81, operation="all-reduce"), "decoding (step 2)"),
    ],
)
def test_a_position_in_words(position: Position, words: str) -> None:
    assert str(position) == words


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    recorder, path = Recorder(), tmp_path / "position"
    recorder.share(path)
    recorder.phase("loading", 8, "weight")
    recorder.step(3)
    with recorder.waits_in("all-gather"):
        found = read_position(path)
        assert found is not None
        assert str(found) == "loading (weight 3 of 8, in all-gather number 1)"
        assert found == recorder.now()
    after = read_position(path)
    assert after is not None
    assert not after.waiting
    assert after.changes > found.changes


def test_what_was_done_before_the_file_was_there_stands_in_it(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.phase("meeting the other ranks")
    recorder.share(tmp_path / "position")
    found = read_position(tmp_path / "position")
    assert found is not None
    assert found.phase == "meeting the other ranks"


def test_a_phase_forgets_the_steps_of_the_one_before() -> None:
    recorder = Recorder()
    recorder.phase("loading", 8, "weight")
    recorder.step(3)
    recorder.phase("decoding")
    assert str(recorder.now()) == "decoding"


def test_every_sign_of_life_is_a_change() -> None:
    recorder = Recorder()
    seen = [recorder.now().changes]
    for act in (recorder.tick, lambda: recorder.step(1), lambda: recorder.phase("decoding")):
        act()
        seen.append(recorder.now().changes)
    assert sorted(set(seen)) == seen


def test_an_error_in_a_collective_leaves_word_of_where_it_was() -> None:
    recorder = Recorder()
    recorder.phase("decoding")
    with pytest.raises(RuntimeError), recorder.waits_in("broadcast"):
        raise RuntimeError
    assert str(recorder.now()) == "decoding (in broadcast number 1)"


def test_only_collectives_are_counted() -> None:
    recorder = Recorder()
    for operation in ("word from rank 0", "all-reduce", "broadcast"):
        with recorder.waits_in(operation):
            pass
    assert recorder.now().collectives == 2


def test_whoever_waits_for_a_person_is_patient_for_as_long() -> None:
    recorder = Recorder()
    recorder.phase("reading a message", patient=True)
    assert recorder.now().patient
    recorder.phase("decoding")
    assert not recorder.now().patient
    with recorder.patiently():
        assert recorder.now().patient
    assert not recorder.now().patient


def test_words_that_are_too_long_are_cut_and_hurt_nothing() -> None:
    recorder = Recorder()
    recorder.phase("é" * 200, 3, "w" * 100)
    assert recorder.now().phase.startswith("é" * 40)


def test_a_listener_hears_of_each_phase_and_step() -> None:
    recorder, heard = Recorder(), list[tuple[str, int]]()
    recorder.listener = lambda phase, step: heard.append((phase, step))
    recorder.phase("loading")
    recorder.step(1)
    recorder.tick()
    assert heard == [("loading", 0), ("loading", 1)]


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * SIZE])
def test_a_file_in_which_nothing_stands_yet_says_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "position"
    path.write_bytes(content)
    assert read_position(path) is None
    assert read_position(tmp_path / "missing") is None


def _work_until_killed(path: str) -> None:
    recorder = Recorder()
    recorder.share(Path(path))
    recorder.phase("decoding")
    recorder.step(7)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_did_last_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "position"
    process = multiprocessing.get_context("spawn").Process(target=_work_until_killed, args=(str(path),))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert str(read_position(path)) == "decoding (step 7)"


def test_a_collective_is_noted_in_microseconds() -> None:
    """A step of decoding has about a hundred: a thousandth of it at most."""
    recorder, count = Recorder(), 2000
    since = time.perf_counter()
    for _ in range(count):
        with recorder.waits_in("all-reduce"):
            pass
    assert (time.perf_counter() - since) / count < 50e-6
