"""The link's other side: a host that is not host 0 tells of its ranks, and does what host 0 decides."""

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from launcher.hosts.address import Endpoint, interface_variables
from launcher.hosts.calling import call
from launcher.hosts.hello import Hello
from launcher.hosts.link import BEAT_S, ENDED, ENDED_S, LOST_S, SILENT, News, Place, State
from launcher.hosts.patience import Patience
from launcher.hosts.wire import Lost, Message
from launcher.ranks.ends import RankEnd
from launcher.ranks.report import RANK_FAILED
from launcher.ranks.verdict import Verdict, verdict_of
from launcher.ranks.watch import Hang
from parallel.errors import RefusedError
from parallel.position import Position


class Member:
    """The launcher of a host that is not host 0."""

    watches = False
    speaks = False

    def __init__(self, own: Hello, endpoint: Endpoint, limit_s: float) -> None:
        """Call host 0. RefusedError says why it cannot be reached, or what it objects to."""
        self.endpoint, self.limit_s = endpoint, limit_s
        self.wire = call(endpoint, own, limit_s)
        self.variables = interface_variables(self.wire.local_address, endpoint.several_hosts)
        self.head = "node 0"
        self._attempt = 0
        self._lost = self._refused = ""
        self._told: Message | None = None
        self._again: Message | None = None
        self._stop = False
        self._beat_s = 0.0
        self._beaten: tuple[bool, bool] = (False, False)

    def begin(self, attempt: int) -> Place:
        """Wait for all hosts to have come (host 0 gives up in time, and says so)."""
        self._told, self._stop, self._attempt = None, False, attempt
        patience = Patience(self.limit_s + LOST_S)
        while (message := self._again) is None:
            self._wait_for_beginning(patience)
        self._again, self._beat_s = None, 0.0
        self.head = f"node 0 (host {message['head']})"
        address, port = message["master"]
        return Place(
            node=message["node"],
            first_rank=message["first_rank"],
            world_size=message["world_size"],
            master=(str(address), int(port)),
            variables=self.variables,
        )

    def _wait_for_beginning(self, patience: Patience) -> None:
        self._hear()
        if self._due():
            self._send("here")
        if self._refused:
            raise RefusedError(self._refused)
        patience.say(lambda: f"node 0 is at {self.endpoint.text}; waiting for other hosts to come there")
        if self._again is None and (self._lost or patience.over):
            raise RefusedError(
                f"node 0 at {self.endpoint.text} has left before the run began"
                f"{f' ({self._lost})' if self._lost else ''}; see what it says there"
            )
        time.sleep(0.01)

    def _due(self) -> bool:
        """Whether it is time for a sign of life."""
        due = time.monotonic() - self._beat_s > BEAT_S
        self._beat_s = time.monotonic() if due else self._beat_s
        return due

    def _messages(self) -> list[Message]:
        try:
            return self.wire.messages()
        except Lost:
            self._lost = self._lost or ENDED
            return []

    def _send(self, kind: str, **fields: object) -> None:
        try:
            self.wire.send(kind, attempt=self._attempt, **fields)
        except Lost as error:
            # Its last words may still be there to be read.
            self._hear()
            self._lost = self._lost or f"the connection to it broke ({error})"

    def _hear(self) -> None:
        for message in self._messages():
            if message["kind"] == "verdict":
                self._told = message
            elif message["kind"] == "end":
                self._stop = True
            elif message["kind"] == "begin":
                self._again = message
            elif message["kind"] == "refused":
                self._refused = str(message["text"])
        if self._told is None and self.wire.silent_s > LOST_S:
            self._lost = self._lost or f"nothing was heard of it for {SILENT}"

    def exchange(self, state: State) -> News:
        self._hear()
        now = (state.failed, state.done)
        if self._due() or now != self._beaten:
            self._beaten = now
            ranks = {rank: asdict(seen) for rank, seen in state.seen.items()}
            self._send("beat", ranks=ranks, failed=state.failed, done=state.done)
        done = state.done and self._told is not None and self._told["verdict"]["code"] == 0
        return News(done=done, stop=not done and (self._told is not None or self._stop or bool(self._lost)))

    def decide(self, ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict:
        """Tell host 0 how the ranks here ended, and hear what it makes of it."""
        if self._lost:
            self._send("left", text=f"{self.head} was lost: {self._lost}")
        else:
            self._send("ended", now_s=time.time(), ends=[end.as_json() for end in _with_one_trace(ends)])
        deadline = time.monotonic() + ENDED_S + LOST_S
        while self._told is None and not self._lost and time.monotonic() < deadline:
            self._hear()
            time.sleep(0.01)
        return self._without_head(ends) if self._told is None else self._verdict(self._told)

    def _without_head(self, ends: Sequence[RankEnd]) -> Verdict:
        """What is said where host 0 cannot tell."""
        if any(end.failure is not None and end.failure.cause for end in ends):
            return verdict_of(ends)
        at = next((end.position for end in ends), Position())
        reason = self._lost or "it did not say what became of the run"
        return Verdict(code=RANK_FAILED, text=f"{self.head} was lost while {at}: {reason}")

    def _verdict(self, told: Message) -> Verdict:
        found = Verdict(**told["verdict"])
        if found.stopped or not found.text:
            return replace(found, stopped=True)
        what = "was refused" if found.code == RefusedError.exit_code else "failed"
        return replace(found, text=f"the run {what}, as {self.head} says: {found.text}", stopped=True)

    def conclude(self, verdict: Verdict, again: bool) -> bool:  # noqa: ARG002
        return self._told is not None and bool(self._told["again"])

    def stopped(self, signal_number: int) -> None:
        self._hear()
        if self._told is None:
            self._send("stopped", signal=int(signal.Signals(signal_number)))

    def close(self) -> None:
        with contextlib.suppress(Lost):
            self.wire.messages()
        self.wire.close()


def _with_one_trace(ends: Sequence[RankEnd]) -> list[RankEnd]:
    """Only the first failure's is ever shown, and those of many ranks are long."""
    first = min((end.failure.time_s for end in ends if end.failure is not None and end.trace), default=None)
    return [end if end.failure is not None and end.failure.time_s == first else replace(end, trace="") for end in ends]
