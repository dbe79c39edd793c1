"""The launcher's private folder, among those of other launchers: living, killed, and nobody's."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.ranks.folder import private_folder
from parallel.errors import RefusedError

_HOLDER = """
import sys, time
from launcher.ranks.folder import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this test, and of what it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def launcher_process() -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Another process with a private folder of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def make_old(folder: Path) -> None:
    os.utime(folder, (time.time() - 60, time.time() - 60))


def test_it_is_for_this_user_alone_and_gone_at_the_end(parent: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "store-0").write_text("")
    assert list(parent.iterdir()) == []


def test_it_is_gone_when_its_body_fails(parent: Path) -> None:
    with pytest.raises(ZeroDivisionError), private_folder():
        raise ZeroDivisionError
    assert list(parent.iterdir()) == []


def test_two_at_once_have_one_each(parent: Path) -> None:
    with private_folder() as one, private_folder() as other:
        assert one != other
        assert sorted(parent.iterdir()) == sorted([one, other])


def test_that_of_a_living_launcher_stays_however_old(parent: Path) -> None:
    with launcher_process() as (process, folder):
        make_old(folder)
        with private_folder():
            assert folder.is_dir()
        assert process.poll() is None


def test_that_of_a_killed_launcher_goes_when_the_next_one_starts(parent: Path) -> None:
    with launcher_process() as (process, folder):
        process.send_signal(signal.SIGKILL)
        process.wait()
        make_old(folder)
        assert folder.is_dir()
        with private_folder() as own:
            assert list(parent.iterdir()) == [own]


def test_one_that_was_just_made_and_is_not_locked_yet_stays(parent: Path) -> None:
    young = parent / "shardrun-young"
    young.mkdir()
    (young / "launcher.lock").touch()
    with private_folder():
        pass
    assert young.is_dir()


def test_a_folder_of_the_users_with_such_a_name_stays(parent: Path) -> None:
    results = parent / "shardrun-results"
    results.mkdir()
    (results / "answers.jsonl").write_text("{}")
    link = parent / "shardrun-link"
    link.symlink_to(results)
    for path in (results, link):
        make_old(path)
    with private_folder():
        pass
    assert (link / "answers.jsonl").read_text() == "{}"


def test_a_temporary_folder_that_takes_nothing_is_refused_by_its_name(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gettempdir() tries what it is told, and falls back; so it is told what it has tried.
    monkeypatch.setattr(tempfile, "tempdir", str(parent / "missing"))
    with pytest.raises(
        RefusedError, match=r"missing cannot be written to: No such file.*; make room there, or set TMP"
    ):
        private_folder().__enter__()


def test_a_removal_that_was_interrupted_is_gone_on_with(parent: Path) -> None:
    """What was left of it has its lock still."""
    with launcher_process() as (process, folder):
        (folder / "store-0").write_text("")
        process.kill()
        process.wait()
    make_old(folder)
    with private_folder() as own:
        assert list(parent.iterdir()) == [own]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which only root may")
def test_a_full_temporary_folder_is_refused_before_any_rank_starts(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=64k none {tmp_path} && {sys.executable} -c '{_HOLDER}'; ls {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert f"the temporary folder {tmp_path} cannot be written to: No space left on device" in done.stderr
    assert done.stdout == ""
