"""Running the real command, and what is demanded of one that is refused."""

import hashlib
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.end_to_end.fault_table import note_for_table

BEFORE_LOADING_S = 5.0
WHILE_LOADING_S = 15.0
# Far beyond every limit that is demanded: the command hangs.
_GIVEN_UP_S = 45.0
_LAUNCH_VARIABLES = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_.*|MASTER_.*|GROUP_.*|ROLE_.*|TORCHELASTIC_.*|TORCH_.*|SHARDRUN_.*|PYTHONPATH|OMP_.*"
)
# A text that a message must hold, or several of which it must hold one.
Said = str | tuple[str, ...]
# The fixture `copy_of`: a copy of a healthy folder by MP, sizes and name.
CopyOf = Callable[..., Path]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int
    left: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("shardrun: error:")]


class Running:
    """A command that was started, in a session of its own, so that whatever it leaves behind can be found."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """`folder` is the command's current one. Its temporary files go to folder/tmp, where they are seen.

        `wrapper`: a program that runs the command, with its arguments.
        """
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        logs = folder.parent / f"{folder.name}-{id(self)}"
        self._out, self._err = logs.with_suffix(".out"), logs.with_suffix(".err")
        clean = {name: value for name, value in os.environ.items() if not _LAUNCH_VARIABLES.fullmatch(name)}
        self._inherited_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.started = time.monotonic()
        # When the fault came that is looked at; None: it was there from the start.
        self.fault_s: float | None = None
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "launcher", *arguments],
                cwd=folder,
                env={**clean, "TMPDIR": str(self.temporary), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None:
            self.process.wait()

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8", errors="replace")

    def members(self) -> list[int]:
        """The living processes of this session, the first one too."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(session) == self.process.pid and state not in "ZX":
                    found.append(int(entry.name))
        return found

    def ranks(self) -> dict[int, int]:
        """The pids of started ranks, by rank."""
        found = {}
        for pid in self.members():
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            rank = next((int(item[5:]) for item in variables if item.startswith(b"RANK=")), None)
            if rank is not None and pid != self.process.pid:
                found[rank] = pid
        return found

    def gone_within(self, limit_s: float) -> list[str]:
        """The command lines of what is still there after `limit_s`; empty as soon as nothing is."""
        deadline = time.monotonic() + limit_s
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [f"{pid}: {_command_line(pid)}" for pid in left]

    def wait_for_output(self, limit_s: float = 60.0) -> None:
        """Wait until the first result stands on stdout."""
        deadline = time.monotonic() + limit_s
        while not self._out.stat().st_size:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before any output:\n{self.err}"
            assert time.monotonic() < deadline, f"no output within {limit_s} s:\n{self.err}"
            time.sleep(0.01)

    def _peak_bytes(self, counted: int) -> int:
        """The most memory that the command held; 0 where all that can be said is that it was less than ours here.

        Linux counts for a child what its parent held when it was started.
        """
        return counted if counted > self._inherited_bytes else 0

    def end(self, limit_s: float = _GIVEN_UP_S, grace_s: float = 0.5) -> Outcome:
        """Wait for the end. `grace_s`: how long what it started may outlive it."""
        deadline = time.monotonic() + limit_s
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            assert time.monotonic() < deadline, f"still running after {limit_s} s:\n{self.out}\n{self.err}"
            time.sleep(0.005)
        seconds = time.monotonic() - self.started
        self.process.returncode = os.waitstatus_to_exitcode(status)
        note_for_table(self.process.returncode, self.err, time.monotonic() - (self.fault_s or self.started))
        left = self.gone_within(grace_s)
        return Outcome(
            code=self.process.returncode,
            out=self.out,
            err=self.err,
            seconds=seconds,
            peak_bytes=self._peak_bytes(usage.ru_maxrss * 1024),
            left=left,
        )


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "(gone)"


def run(arguments: Sequence[str], folder: Path, *, env: Mapping[str, str] | None = None) -> Outcome:
    """Run `python -m launcher ARGUMENTS` in `folder` to its end."""
    with Running(arguments, folder, env=env) as running:
        return running.end()


def complete(folder: str | Path = "ckpt", *flags: str, prompts: str = '["the old boat"]') -> list[str]:
    """The arguments of a short `complete`; a flag in `flags` stands in place of the one here."""
    default = {"--max_seq_len": "32", "--max_gen_len": "2", "--device": "cpu", "--temperature": "0"}
    given = {word.split("=")[0] for word in flags}
    chosen = [word for name, value in default.items() if name not in given for word in (name, value)]
    asked = [] if "--prompts" in given else ["--prompts", prompts]
    return ["complete", "--ckpt_dir", str(folder), *asked, *chosen, *flags]


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below `folder` with a digest of what stands there."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*"))}


def _digest(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return f"kind {stat.S_IFMT(status.st_mode):o}"
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{content} {status.st_mtime_ns} {status.st_ino} {status.st_mode:o}"


def assert_says(message: str, says: Sequence[Said]) -> None:
    for said in says:
        choices = (said,) if isinstance(said, str) else said
        assert any(choice in message for choice in choices), f"{choices} not in: {message}"


def assert_one_message(outcome: Outcome, *, alone: bool) -> None:
    """One error on stderr, no trace, no advice to switch safety off; `alone`: not even a line of log beside it."""
    assert "Traceback" not in outcome.err, outcome.err
    assert "weights_only" not in outcome.err, outcome.err
    lines = outcome.err.splitlines()
    assert len(outcome.errors) == 1, outcome.err
    # Besides our own log, only fairscale speaks, when it makes its groups.
    assert all(line.startswith(("shardrun: ", "> initializing ")) for line in lines), outcome.err
    assert not alone or len(lines) == 1, outcome.err


def assert_refused(
    outcome: Outcome, says: Sequence[Said], limit_s: float = BEFORE_LOADING_S, *, alone: bool | None = None
) -> None:
    """Exit code 2, one message that says all of `says`, in time, nothing printed and no process left.

    `alone`: not a line besides (default: where nothing is loaded yet).
    """
    assert outcome.code == 2, (outcome.code, outcome.err)
    assert_one_message(outcome, alone=limit_s == BEFORE_LOADING_S if alone is None else alone)
    assert_says(outcome.errors[0], says)
    assert outcome.out == ""
    assert outcome.left == []
    assert outcome.seconds < limit_s


def assert_done(outcome: Outcome, says: Sequence[Said] = ()) -> None:
    """Exit code 0, no error, `says` in the log, no process left."""
    assert outcome.code == 0, (outcome.code, outcome.err)
    assert not outcome.errors
    assert "Traceback" not in outcome.err
    assert_says(outcome.err, says)
    assert outcome.left == []
