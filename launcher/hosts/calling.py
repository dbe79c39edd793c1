"""How another host's launcher finds host 0, which may not be there yet."""

import socket
import time
from dataclasses import asdict

from launcher.hosts.address import Endpoint
from launcher.hosts.hello import Hello
from launcher.hosts.patience import Patience
from launcher.hosts.wire import Lost, Wire
from parallel.addresses import Address
from parallel.errors import RefusedError

_CONNECT_S = 2.0
_ANSWER_S = 3.0
_RETRY_S = 0.1


class Unreached(RefusedError):
    """Nobody listens at the endpoint, or it cannot be reached."""


def call(endpoint: Endpoint, own: Hello, limit_s: float, refusal: str = "") -> Wire:
    """A connection to host 0, which has let us in. RefusedError says why there is none.

    `refusal`: why this host does not take part, for host 0 to tell the others.
    """
    wire = Wire(_connect(endpoint, own, limit_s))
    stranger = RefusedError(
        f"what listens at {endpoint.text} is not node 0 of this run, or it has begun without {own}; see what holds "
        "that port there, or choose another"
    )
    try:
        wire.send("hello", hello=asdict(own), refusal=refusal)
        answer = wire.answer({"here", "refused"}, _ANSWER_S)
    except Lost:
        answer = None
    if answer is None:
        wire.close()
        raise stranger
    if answer["kind"] == "refused":
        wire.close()
        raise RefusedError(str(answer.get("text")))
    return wire


def _connect(endpoint: Endpoint, own: Hello, limit_s: float) -> socket.socket:
    patience = Patience(limit_s)
    while True:
        for address in endpoint.addresses:
            found = _try(address, endpoint.port)
            if isinstance(found, socket.socket):
                return found
            reason = found
            patience.say(lambda: f"waiting for node 0 at {endpoint.text} ({reason})")  # noqa: B023
            if patience.over:
                raise Unreached(_unreached(endpoint, own, limit_s, reason))
        time.sleep(_RETRY_S)


def _try(address: Address, port: int) -> socket.socket | str:
    """A connection, or why there is none."""
    connection = socket.socket(address[0], socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_S)
    try:
        connection.connect((address[1], port))
        # A port of those that are given out may be given to the caller itself.
        if connection.getsockname() != connection.getpeername():
            return connection
        reason = "Connection refused"
    except OSError as error:
        reason = error.strerror or str(error)
    connection.close()
    return reason


def _unreached(endpoint: Endpoint, own: Hello, limit_s: float, reason: str) -> str:
    return (
        f"{own} cannot reach node 0 at {endpoint} after {limit_s:g} s: {reason}; start the same command there, or "
        "correct rdzv_endpoint"
    )
