"""The output of a Slurm job, read from its file while the job writes it."""

import time
from collections.abc import Callable
from pathlib import Path

from launcher.cluster.kinds import Status
from launcher.console import say
from parallel.errors import RefusedError

_BLOCK_BYTES = 2**20
_READ_S = 0.25
# Slurm is asked less often than the file: its controller serves everybody.
_ASK_S = 2.0
# A file system that several hosts share shows what another has written only after a while.
_LATE_S = 3.0


class Output:
    """A file that somebody else writes, shown as far as it is there."""

    def __init__(self, path: Path, show: Callable[[bytes], None]) -> None:
        self.path, self.show = path, show
        self.shown_bytes = 0

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def show_new(self) -> bool:
        """Show what has come since; False where nothing has. RefusedError where it cannot be read."""
        before = self.shown_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(before)
                while block := file.read(_BLOCK_BYTES):
                    self.show(block)
                    self.shown_bytes += len(block)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RefusedError(f"{self.path}: the job's output cannot be read: {error.strerror}") from None
        return self.shown_bytes > before


def follow_output(output: Output, ask: Callable[[], Status], has_result: Callable[[], bool], job_id: str) -> Status:
    """Show the output as it comes, until the job has ended and all is shown. What a waiting job waits for is said.

    `ask` asks Slurm; `has_result` looks whether the job's script has left its result, and costs next to nothing.
    """
    said, asked_s, result_seen = "", 0.0, False
    while True:
        result_now = not result_seen and has_result()
        if result_now or time.monotonic() - asked_s > _ASK_S:
            status, asked_s, result_seen = ask(), time.monotonic(), result_seen or result_now
            if status.state == "waiting" and status.detail != said:
                said = status.detail
                say(f"job {job_id} waits: {said}")
            if status.state not in ("waiting", "running"):
                show_rest(output)
                return status
        if not output.show_new():
            time.sleep(_READ_S)


def show_rest(output: Output) -> None:
    """Show what still comes of a job that has ended."""
    deadline = time.monotonic() + _LATE_S
    while not output.exists and time.monotonic() < deadline:
        time.sleep(_READ_S)
    while output.show_new():
        time.sleep(_READ_S)
