"""What ranks say: which lines reach the terminal and which only the log."""

import os
from pathlib import Path

import pytest

from launcher.ranks.forwarding import forward, last_words

LINES = [
    b"shardrun: loaded 0.1 GB\n",
    b"shardrun: rank 1: note: something\n",
    b"[log] Traceback (most recent call last):\n",
    b"[W1120 16:40:46.123 socket.cpp:755] [c10d] no route\n",
    b"[rank0]:[E1120 16:40:46.123 ProcessGroupNCCL.cpp:629] watchdog\n",
    b"frame #0: c10::Error::Error(...)\n",
    b"Exception raised from doWait at ...\n",
    b"[1, 2, 3] is a list\n",
    b"the last line has no end",
]
OF_RANK_0 = LINES[:2] + LINES[-2:]
OF_ANOTHER = LINES[1:2]


def forwarded(lines: list[bytes], log: Path, speaks: bool) -> None:
    """Through a pipe, as of a real process."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.writelines(lines)
    with os.fdopen(reader, "rb") as source:
        forward(source, log, speaks)


@pytest.mark.parametrize(("speaks", "shown"), [(True, OF_RANK_0), (False, OF_ANOTHER)])
def test_the_terminal_gets_what_a_person_is_to_read_and_the_log_all(
    speaks: bool, shown: list[bytes], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    forwarded(LINES, tmp_path / "rank.log", speaks)
    assert capfdbinary.readouterr().err == b"".join(shown)
    assert (tmp_path / "rank.log").read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("log", ["/nowhere/rank.log", "/dev/full"])
def test_a_log_that_cannot_be_written_stops_nothing_and_is_told_once(
    log: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    forwarded(LINES, Path(log), True)
    said = capfdbinary.readouterr().err
    start = said.index(b"shardrun: note: the log")
    note = said[start : said.index(b"\n", start) + 1]
    assert note.startswith(f"shardrun: note: the log {log} is not whole: No s".encode())
    assert said.replace(note, b"") == b"".join(OF_RANK_0)


def test_a_terminal_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    try:
        os.dup2(writer, 2)
        forwarded(LINES, tmp_path / "rank.log", True)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    assert (tmp_path / "rank.log").read_bytes() == b"".join(LINES)


def test_the_last_words_are_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    log.write_bytes(b"x" * 100_000 + b"KeyError: 'x'\n")
    assert last_words(log).endswith("KeyError: 'x'\n")
    assert len(last_words(log)) < 20_000
    assert last_words(tmp_path / "missing") == ""
