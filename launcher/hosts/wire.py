"""One connection between two launchers: short JSON messages, a line each, over TCP. No pickle crosses it."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Collection
from typing import Any

Message = dict[str, Any]
# Longer than any of ours: whoever sends more is somebody else.
LONGEST_BYTES = 2**22
_SEND_S = 2.0
_NOT_OURS = "what it sends is not ours"


class Lost(Exception):
    """The other end has gone."""


class Wire:
    """A connected socket. `silent_s` says how long nothing has come."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(_SEND_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Not select(), which knows no descriptor above 1023.
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._held = b""
        self._kept: list[Message] = []
        # Why nothing more will come.
        self._broken = ""
        self._heard_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._heard_s

    @property
    def local_address(self) -> str:
        """This host's address, as the other end sees it."""
        return str(self.connection.getsockname()[0])

    def send(self, kind: str, **fields: object) -> None:
        """Lost where it cannot be sent."""
        try:
            self.connection.sendall(json.dumps({"kind": kind, **fields}).encode() + b"\n")
        except OSError as error:
            raise Lost(error.strerror or str(error)) from None

    def messages(self) -> list[Message]:
        """What has come since; without waiting. Lost where the other end has gone, or is none of ours."""
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        self._read()
        *lines, self._held = self._held.split(b"\n")
        # Whoever has gone may have said why: first its last words, then Lost.
        if self._broken and not lines:
            raise Lost(self._broken)
        try:
            return [_message(line) for line in lines]
        except ValueError:
            self._broken = _NOT_OURS
            raise Lost(_NOT_OURS) from None

    def _read(self) -> None:
        while not self._broken and self._poll.poll(0):
            try:
                data = self.connection.recv(2**16)
            except OSError as error:
                self._broken = error.strerror or str(error)
                return
            if not data:
                self._broken = "it closed the connection"
                return
            self._heard_s = time.monotonic()
            self._held += data
            if len(self._held) > LONGEST_BYTES:
                self._broken, self._held = _NOT_OURS, b""

    def answer(self, kinds: Collection[str], limit_s: float) -> Message | None:
        """The first message of these kinds; None where none comes in time. What came with it is kept for later."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            found = self.messages()
            for place, message in enumerate(found):
                if message["kind"] in kinds:
                    self._kept = found[place + 1 :]
                    return message
            time.sleep(0.01)
        return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()


def _message(line: bytes) -> Message:
    """A line as a message. ValueError where it is none."""
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError from None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise ValueError
    return found
