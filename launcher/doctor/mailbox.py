"""Lines of JSON from several processes over one pipe: one descriptor, since a sick machine may allow few."""

import json
import os
import select
import sys
from collections.abc import Mapping
from typing import Any

# A write of no more arrives whole, whoever else writes.
_WHOLE_BYTES = select.PIPE_BUF
_CHUNK_BYTES = 65536


class Mailbox:
    """The reading end. `slot` is what the senders write to: their stdout."""

    def __init__(self) -> None:
        self._reader, self.slot = os.pipe()
        os.set_blocking(self._reader, False)
        self._rest = b""

    def receive(self, wait_s: float) -> list[tuple[str, dict[str, Any]]]:
        """Sender and message of what came, after at most `wait_s`. What is no message is passed over."""
        if not select.select([self._reader], [], [], max(0.0, wait_s))[0]:
            return []
        *lines, self._rest = (self._rest + os.read(self._reader, _CHUNK_BYTES)).split(b"\n")
        return [message for line in lines if (message := _message(line)) is not None]

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.slot)


def _message(line: bytes) -> tuple[str, dict[str, Any]] | None:
    try:
        sender, content = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (sender, content) if isinstance(sender, str) and isinstance(content, dict) else None


def own_slot() -> int:
    """A sender's way to the mailbox: its stdout, from which whatever libraries print is kept away."""
    slot = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = sys.stderr
    return slot


def post(slot: int, sender: str, content: Mapping[str, Any]) -> None:
    """Send a message; texts too long to arrive whole are cut."""
    kept = dict(content)
    while len(line := f"{json.dumps([sender, kept])}\n".encode()) > _WHOLE_BYTES:
        longest = max(kept, key=lambda key: len(str(kept[key])))
        kept[longest] = f"{str(kept[longest])[: len(str(kept[longest])) // 2]}..."
    os.write(slot, line)
