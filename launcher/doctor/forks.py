"""The rank processes of the doctor's all-reduce: started, given jobs, and replaced where one fails or hangs.

They are forks of the check's process, which has loaded torch and done nothing with it: eight ranks that each load
torch take longer on two cores than the whole check has.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launcher.doctor.mailbox import Mailbox, post
from launcher.doctor.processes import bound_to_us
from parallel.environment import RENDEZVOUS_FILE

# What a shell, a scheduler or torchrun may have left there; each job says its own.
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OTHERS = ("TORCHELASTIC_", "SHARDRUN_")

Job = Mapping[str, Any]


@dataclass(slots=True)
class _Rank:
    """A rank's process, and the way jobs go to it."""

    pid: int
    jobs: IO[str]
    gone: bool = False

    def has_ended(self) -> bool:
        self.gone = self.gone or os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self.gone

    def kill(self) -> None:
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.jobs.close()


@dataclass(slots=True)
class ForkedRanks:
    """Ranks that do jobs with `act`. `visible`: what CUDA_VISIBLE_DEVICES is for each; empty on the CPU."""

    act: Callable[[Job], Mapping[str, Any]]
    device: str
    visible: Sequence[str] = ()
    mailbox: Mailbox = field(default_factory=Mailbox)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="shardrun-doctor-")))
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _answers: dict[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    _jobs: int = 0

    def __enter__(self) -> "ForkedRanks":
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks.values():
            rank.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.mailbox.close()

    def start(self, number: int) -> None:
        """Start a rank, in place of the one before where there was one."""
        if number in self._ranks:
            self._ranks[number].kill()
        reader, writer = os.pipe()
        bind = bound_to_us()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            self._serve(number, reader, bind)
        os.close(reader)
        self._ranks[number] = _Rank(pid, os.fdopen(writer, "w"))

    def _serve(self, number: int, reader: int, bind: Callable[[], None]) -> None:
        """The life of a rank. Never returns."""
        try:
            bind()
            prepare(self.visible[number] if self.visible else None)
            with os.fdopen(reader) as jobs:
                for line in jobs:
                    post(self.mailbox.slot, str(number), self.act(json.loads(line)))
        finally:
            # A group that failed may wait for ever when it is destroyed.
            os._exit(0)

    def reduce(self, groups: Sequence[Sequence[int]], limit_s: float) -> list[float | str]:
        """Let each group of ranks add up, all groups at once: seconds of an all-reduce each, or what is wrong."""
        self._jobs += 1
        for group in groups:
            for position, number in enumerate(group):
                self._send(number, self._job(position, group, limit_s))
        until = time.monotonic() + limit_s
        asked = {(number, self._jobs) for group in groups for number in group}
        while (waiting := asked - self._answers.keys()) and time.monotonic() < until:
            self._listen(0.05)
            if all(self._ranks[number].has_ended() for number, _ in waiting):
                self._listen(0.0)
                break
        return [self._outcome(group, limit_s) for group in groups]

    def _job(self, position: int, group: Sequence[int], limit_s: float) -> Job:
        # On GPUs each rank sees its own alone, and is the only one of its host as far as it knows.
        local, beside = (0, 1) if self.visible else (position, len(group))
        numbers = {"RANK": position, "WORLD_SIZE": len(group), "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": beside}
        store = self.folder / f"{self._jobs}-{group[0]}-{group[-1]}"
        return {
            "job": self._jobs,
            "device": self.device,
            "environment": {name: str(number) for name, number in numbers.items()} | {RENDEZVOUS_FILE: str(store)},
            "timeout_s": limit_s,
        }

    def _send(self, number: int, job: Job) -> None:
        # A rank that has ended gives no answer, which is then said.
        with contextlib.suppress(OSError):
            self._ranks[number].jobs.write(json.dumps(job) + "\n")
            self._ranks[number].jobs.flush()

    def _outcome(self, group: Sequence[int], limit_s: float) -> float | str:
        answers = {number: self._answers.get((number, self._jobs)) for number in group}
        errors = [str(answer["error"]) for answer in answers.values() if answer and "error" in answer]
        silent = [number for number, answer in answers.items() if answer is None]
        if errors:
            return min(errors, key=_follows)
        if silent:
            ended = [number for number in silent if self._ranks[number].has_ended()]
            return f"rank {ended[0]} died" if ended else f"no answer within {limit_s:g} s"
        return max(float(answer["seconds"]) for answer in answers.values() if answer)

    def _listen(self, wait_s: float) -> None:
        for sender, content in self.mailbox.receive(wait_s):
            self._answers[int(sender), content["job"]] = content


def _follows(error: str) -> bool:
    """Whether an error is what another rank's error leads to."""
    return "closed by peer" in error or "imed out" in error


def prepare(visible: str | None) -> None:
    """Make this process's variables those of a rank that our supervisor starts; what belongs to a job comes with it."""
    for name in list(os.environ):
        if name in _LAUNCH or name.startswith(_OTHERS):
            del os.environ[name]
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
