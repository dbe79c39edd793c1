"""Host 0's door: it listens at the endpoint until all hosts have come, and numbers them.

Every step has a limit and a sentence. Who does not belong to the run is sent away with the reason; what keeps one
host from taking part is told to all that are here.
"""

import contextlib
import select
import socket
import time
from dataclasses import dataclass

from launcher.hosts.address import Endpoint
from launcher.hosts.hello import Hello, node_name, objection, other_version
from launcher.hosts.link import BEAT_S, LOST_S
from launcher.hosts.patience import Patience
from launcher.hosts.wire import Lost, Message, Wire
from launcher.settings.options import ParallelSection
from parallel.errors import RefusedError

# For a caller to say who it is.
_HELLO_S = 5.0
_LOOK_S = 0.05


@dataclass(slots=True)
class Peer:
    """Another host's launcher, as host 0 knows it."""

    hello: Hello
    wire: Wire
    node: int = 0

    def __str__(self) -> str:
        return node_name(self.node, self.hello.host)


def check_place(parallel: ParallelSection) -> Endpoint:
    """The endpoint, resolved. RefusedError where the settings of several hosts do not go together."""
    if parallel.rdzv_endpoint is None:
        raise RefusedError(
            f"nnodes is {parallel.nnodes} but rdzv_endpoint is not given; wanted HOST:PORT of host 0, the same on "
            "every host, as node0:29400"
        )
    if parallel.rdzv_backend == "static":
        if parallel.node_rank is None:
            raise RefusedError(
                f"nnodes is {parallel.nnodes} but node_rank is not given; number the hosts 0 to {parallel.nnodes - 1}, "
                "or let them be numbered with rdzv_backend c10d"
            )
        if parallel.node_rank >= parallel.nnodes:
            raise RefusedError(
                f"node_rank is {parallel.node_rank} but nnodes is {parallel.nnodes}; hosts count from 0 to "
                f"{parallel.nnodes - 1}"
            )
    return Endpoint.parse(parallel.rdzv_endpoint)


def gather(listener: socket.socket, own: Hello, endpoint: Endpoint, limit_s: float) -> list[Peer]:
    """Wait for the others, and number them. RefusedError, told to those that came, lists who is missing."""
    door = Door(listener, own)
    patience = Patience(limit_s)
    try:
        while len(door.peers) < own.nnodes - 1:
            door.look()
            patience.say(lambda: f"waiting for {_missing(own, door.peers)} at {endpoint.text}")
            if patience.over:
                raise RefusedError(_missing_text(own, door, endpoint, limit_s))
    except RefusedError as error:
        door.send_all_away(str(error))
        raise
    finally:
        door.shut()
    return _numbered(door.peers)


def turn_all_away(listener: socket.socket, own: Hello, reason: str, limit_s: float) -> None:
    """Tell every host that comes why this one does not take part, until all have come or the time is over."""
    door = Door(listener, own, reason)
    deadline = time.monotonic() + limit_s
    while door.told < own.nnodes - 1 and time.monotonic() < deadline:
        with contextlib.suppress(RefusedError):  # a caller's own reason it says itself
            door.look()
    door.shut()


class Door:
    """Who has come. `reason`: why nobody is let in."""

    def __init__(self, listener: socket.socket, own: Hello, reason: str = "") -> None:
        self.listener, self.own, self.reason = listener, own, reason
        self.peers: list[Peer] = []
        self.turned_away: list[str] = []
        self.told = 0
        self._callers: list[Wire] = []
        self._beat_s = 0.0
        listener.setblocking(False)
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def look(self) -> None:
        """See who has come and who has left; waits a moment. RefusedError where the run cannot be."""
        if self._poll.poll(1000 * _LOOK_S):
            self._open()
        for wire in list(self._callers):
            self._hear_caller(wire)
        for peer in list(self.peers):
            if _has_left(peer.wire):
                self.peers.remove(peer)
                peer.wire.close()
        if time.monotonic() - self._beat_s > BEAT_S:
            self._beat_s = time.monotonic()
            for peer in self.peers:
                with contextlib.suppress(Lost):
                    peer.wire.send("beat")

    def _open(self) -> None:
        try:
            self._callers.append(Wire(self.listener.accept()[0]))
        except (BlockingIOError, ConnectionError):
            pass  # it has left again
        except OSError as error:
            raise RefusedError(
                f"{self.own} can take no more connections: {error.strerror}; raise the limit of open files (ulimit -n)"
            ) from None

    def _hear_caller(self, wire: Wire) -> None:
        try:
            found = wire.messages()
        except Lost:
            found = None
        if found:
            self._callers.remove(wire)
            self._judge(wire, found[0])
        elif found is None or wire.silent_s > _HELLO_S:
            self._callers.remove(wire)
            wire.close()

    def _judge(self, wire: Wire, message: Message) -> None:
        """Let a caller in, or send it away. RefusedError where no other can come in its place."""
        try:
            reason = other_version(message.get("hello"), self.own)
            hello = None if reason else Hello.from_json(message.get("hello"))
        except ValueError:
            wire.close()  # a stranger
            return
        if hello is not None:
            reason = objection(hello, self.own, [peer.hello.node_rank for peer in self.peers])
        if hello is None or reason:
            self._send_away(wire, str(reason))
            self.turned_away.append(str(reason))
            # Another run's launcher is none of our business.
            if message["hello"].get("rdzv_id") == self.own.rdzv_id:
                raise RefusedError(str(reason))
        elif message.get("refusal"):
            self.told += 1
            wire.close()
            raise RefusedError(f"{hello}: {message['refusal']}")
        elif self.reason:
            self.told += 1
            self._send_away(wire, f"{self.own}: {self.reason}")
        else:
            with contextlib.suppress(Lost):
                wire.send("here")
                self.peers.append(Peer(hello, wire))

    def _send_away(self, wire: Wire, reason: str) -> None:
        with contextlib.suppress(Lost):
            wire.send("refused", text=reason)
        wire.close()

    def send_all_away(self, reason: str) -> None:
        for peer in self.peers:
            self._send_away(peer.wire, reason)

    def shut(self) -> None:
        """Leave those who have not said who they are."""
        for wire in self._callers:
            wire.close()


def _has_left(wire: Wire) -> bool:
    try:
        if any(message["kind"] == "stopped" for message in wire.messages()):
            return True
    except Lost:
        return True
    return wire.silent_s > LOST_S


def _numbered(peers: list[Peer]) -> list[Peer]:
    """By their own number, or by name."""
    ordered = sorted(peers, key=lambda peer: (peer.hello.node_rank, peer.hello.host, peer.hello.pid))
    for node, peer in enumerate(ordered, 1):
        peer.node = node
    return ordered


def _missing(own: Hello, peers: list[Peer]) -> str:
    if own.rdzv_backend == "c10d":
        return f"{own.nnodes - 1 - len(peers)} of {own.nnodes} hosts"
    here = {peer.hello.node_rank for peer in peers}
    missing = [str(node) for node in range(1, own.nnodes) if node not in here]
    shown = ", ".join(missing[:16]) + (", ..." if len(missing) > 16 else "")
    return f"node{'s' if len(missing) > 1 else ''} {shown} of {own.nnodes}"


def _missing_text(own: Hello, door: Door, endpoint: Endpoint, limit_s: float) -> str:
    came = ", ".join(str(each) for each in [own, *(peer.hello for peer in door.peers)])
    text = (
        f"{_missing(own, door.peers)} did not come to {endpoint.text} within {limit_s:g} s (here: {came}); see whether "
        "each was started with the same command, and whether that port of node 0 can be reached from there"
    )
    return "; ".join([text, *(f"turned away: {reason}" for reason in dict.fromkeys(door.turned_away))])
