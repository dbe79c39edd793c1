"""Host 0's side of the link: it hears of all ranks, decides what became of the run, and tells the others."""

import contextlib
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from launcher.hosts.address import Endpoint, interface_variables
from launcher.hosts.hello import Hello
from launcher.hosts.link import BEAT_S, ENDED, ENDED_S, LOST_S, SILENT, News, Place, State
from launcher.hosts.meeting import Peer, gather
from launcher.hosts.wire import Lost, Message
from launcher.ranks.ends import RankEnd
from launcher.ranks.report import RANK_FAILED, SIGNALLED
from launcher.ranks.verdict import Verdict, verdict_of
from launcher.ranks.watch import Hang, Seen
from parallel.addresses import hold_port, plain_address
from parallel.position import Position

# For the others to leave first, when all is said.
_CLOSE_S = 1.0


class Head:
    """The launcher of host 0."""

    watches = True
    speaks = True

    def __init__(self, listener: socket.socket, address: str, own: Hello, endpoint: Endpoint, limit_s: float) -> None:
        """Wait for the others. `address`: of this host, where they find it; '': theirs to tell. RefusedError says who
        is missing."""
        self.own = own
        with listener:
            self.peers = gather(listener, own, endpoint, limit_s)
        self.address = plain_address(address or self.peers[0].wire.local_address)
        self.variables = interface_variables(self.address, endpoint.several_hosts)
        self._attempt = 0
        self._port: socket.socket | None = None
        self._seen: dict[int, dict[int, Seen]] = {}
        self._done: set[int] = set()
        self._ended: dict[int, list[RankEnd]] = {}
        # By node: why its launcher is not to be heard of; and which were told to stop.
        self._lost: dict[int, str] = {}
        self._stopped: dict[int, int] = {}
        self._failed = self._told_to_end = False
        self._beat_s = 0.0

    def begin(self, attempt: int) -> Place:
        self._attempt = attempt
        self._seen, self._done, self._ended = {}, set(), {}
        self._failed = self._told_to_end = False
        self._beat_s = 0.0
        master = (self.address, self._new_port())
        ranks = self.own.nproc_per_node
        world_size = ranks * self.own.nnodes
        for peer in self.peers:
            place = {"node": peer.node, "first_rank": peer.node * ranks, "world_size": world_size}
            self._send(peer, "begin", attempt=attempt, master=master, head=self.own.host, **place)
        return Place(world_size=world_size, master=master, variables=self.variables)

    def _new_port(self) -> int:
        """A port for rank 0's store, held until it listens there: that is seconds from now."""
        self._leave_port()
        self._port = hold_port(socket.AF_INET6 if ":" in self.address else socket.AF_INET, self.address)
        return int(self._port.getsockname()[1])

    def _leave_port(self) -> None:
        if self._port is not None:
            self._port.close()

    def _send(self, peer: Peer, kind: str, **fields: object) -> None:
        try:
            peer.wire.send(kind, **fields)
        except Lost as error:
            # Its last words may still be there to be read.
            self._hear(peer)
            if peer.node not in self._ended and peer.node not in self._stopped:
                self._lost.setdefault(peer.node, f"the connection to its launcher broke ({error})")

    def exchange(self, state: State) -> News:
        for peer in self.peers:
            self._hear(peer)
        self._failed = self._failed or state.failed
        done = state.done and len(self._done) == len(self.peers)
        stop = not done and (self._failed or bool(self._lost) or bool(self._stopped))
        if stop:
            self._tell_to_end()
        elif time.monotonic() - self._beat_s > BEAT_S:
            self._beat_s = time.monotonic()
            for peer in self._reachable():
                self._send(peer, "beat")
        return News(
            done=done,
            stop=stop,
            others={rank: seen for ranks in self._seen.values() for rank, seen in ranks.items()},
        )

    def _tell_to_end(self) -> None:
        if not self._told_to_end:
            self._told_to_end = True
            for peer in self._reachable():
                self._send(peer, "end")

    def _reachable(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.node not in self._lost]

    def _hear(self, peer: Peer) -> None:
        if peer.node in self._lost or peer.node in self._stopped:
            return
        try:
            for message in peer.wire.messages():
                self._take(peer, message)
        except Lost:
            if peer.node not in self._ended:
                self._lost[peer.node] = ENDED
            return
        if peer.wire.silent_s > LOST_S:
            self._lost[peer.node] = f"nothing was heard of its launcher for {SILENT}"

    def _take(self, peer: Peer, message: Message) -> None:
        kind = message["kind"]
        if kind == "stopped":
            self._stopped[peer.node] = int(message["signal"])
        elif kind == "left":
            self._lost[peer.node] = f"it has given up, since {message['text']}"
        elif message.get("attempt") != self._attempt:
            return  # of an attempt that is over
        elif kind == "beat":
            self._seen[peer.node] = {int(rank): _seen(fields) for rank, fields in message["ranks"].items()}
            self._failed = self._failed or message["failed"]
            if message["done"]:
                self._done.add(peer.node)
        elif kind == "ended":
            # The hosts' clocks need not agree.
            behind_s = time.time() - float(message["now_s"])
            self._ended[peer.node] = [RankEnd.from_json(fields).later(behind_s) for fields in message["ends"]]
            self._failed = True

    def decide(self, ends: Sequence[RankEnd], hang: Hang | None) -> Verdict:
        self._tell_to_end()
        deadline = time.monotonic() + ENDED_S
        while self._unheard() and time.monotonic() < deadline:
            for peer in self.peers:
                self._hear(peer)
            time.sleep(0.01)
        everyone = [*ends, *(end for found in self._ended.values() for end in found)]
        return self._about_hosts(everyone) or _with_host(verdict_of(everyone, hang), everyone)

    def _unheard(self) -> set[int]:
        return set(range(1, self.own.nnodes)) - set(self._stopped) - set(self._lost) - set(self._ended)

    def _about_hosts(self, ends: Sequence[RankEnd]) -> Verdict | None:
        """What is to be said of a host rather than of a rank; None where a rank knows why it failed."""
        names = {peer.node: str(peer) for peer in self.peers}
        for node, number in self._stopped.items():
            text = f"{names[node]} was stopped by {signal.Signals(number).name}"
            return Verdict(code=SIGNALLED + number, text=text, stopped=True)
        if any(end.failure is not None and end.failure.cause for end in ends):
            return None
        for node, reason in self._lost.items():
            at = next((seen.position for seen in self._seen.get(node, {}).values()), Position())
            return Verdict(code=RANK_FAILED, text=f"{names[node]} was lost while {at}: {reason}")
        return None

    def conclude(self, verdict: Verdict, again: bool) -> bool:
        again = again and not self._lost and not self._stopped
        fields = asdict(verdict) | {"trace": ""}
        # Those that were given up too: one that was only stopped reads it when it goes on.
        for peer in self.peers:
            self._send(peer, "verdict", verdict=fields, again=again)
        return again

    def stopped(self, signal_number: int) -> None:
        text = f"{self.own} was stopped by {signal.Signals(signal_number).name}"
        self.conclude(Verdict(code=SIGNALLED + signal_number, text=text, stopped=True), again=False)

    def close(self) -> None:
        """Leave when the others have: whoever closes first may cut off its own last words."""
        self._leave_port()
        deadline = time.monotonic() + _CLOSE_S
        for peer in self._reachable():
            with contextlib.suppress(Lost):
                while time.monotonic() < deadline:
                    peer.wire.messages()
                    time.sleep(0.005)
        for peer in self.peers:
            peer.wire.close()


def _with_host(verdict: Verdict, ends: Sequence[RankEnd]) -> Verdict:
    """What a rank says of its files, with its host: others have their own."""
    for end in ends:
        said = verdict.text.removeprefix(f"rank {end.rank}: ")
        if said != verdict.text:
            return replace(verdict, text=f"rank {end.rank} (host {end.host}): {said}")
    return verdict


def _seen(fields: dict[str, Any]) -> Seen:
    return Seen(position=Position(**fields["position"]), state=fields["state"])
