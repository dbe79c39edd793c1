"""Host 0's door, over real sockets of the loopback device: who is let in, who is sent away, and what is said."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import pytest

from launcher.hosts.address import Endpoint
from launcher.hosts.calling import Unreached, call
from launcher.hosts.hello import Hello, objection, other_version
from launcher.hosts.linking import open_link, refuse_on_all_hosts
from launcher.hosts.meeting import Peer, check_place, gather, turn_all_away
from launcher.hosts.wire import Wire
from launcher.settings.options import ParallelSection
from parallel.errors import RefusedError

MEET_S = 10.0
HEAD = Hello(
    rdzv_id="run",
    nnodes=3,
    rdzv_backend="static",
    node_rank=0,
    nproc_per_node=2,
    host="a",
    pid=1,
    version="1.0",
)


def member(node_rank: int, **other: Any) -> Hello:
    return replace(HEAD, node_rank=node_rank, host="xbc"[node_rank], pid=node_rank + 1, **other)


class Meeting:
    """Host 0 waits in a thread; callers come from the test."""

    def __init__(self, own: Hello, limit_s: float) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        family = socket.AF_INET
        self.endpoint = Endpoint(text="a:1", host="a", port=self.port, addresses=((family, "127.0.0.1"),))
        self._pool = ThreadPoolExecutor(8)
        self._called: list[Future[Wire]] = []
        self.gathered: Future[list[Peer]] = self._pool.submit(gather, self.listener, own, self.endpoint, limit_s)

    def call(self, own: Hello, refusal: str = "", endpoint: Endpoint | None = None) -> "Future[Wire]":
        self._called.append(self._pool.submit(call, endpoint or self.endpoint, own, MEET_S, refusal))
        return self._called[-1]

    def say(self, text: bytes) -> socket.socket:
        caller = socket.create_connection(("127.0.0.1", self.port))
        caller.sendall(text)
        return caller

    def hello(self, own: Hello) -> socket.socket:
        """Let in, and a bare socket from then on."""
        caller = self.say(json.dumps({"kind": "hello", "hello": asdict(own)}).encode() + b"\n")
        caller.settimeout(MEET_S)
        assert json.loads(caller.makefile().readline()) == {"kind": "here"}
        return caller

    def numbered(self) -> list[tuple[int, str]]:
        return [(peer.node, peer.hello.host) for peer in self.gathered.result()]

    def refusal(self) -> str:
        with pytest.raises(RefusedError) as caught:
            self.gathered.result()
        return str(caught.value)

    def end(self) -> None:
        self._pool.shutdown()
        self.listener.close()
        wires = [called.result() for called in self._called if called.exception() is None]
        for wire in [*wires, *(() if self.gathered.exception() else (peer.wire for peer in self.gathered.result()))]:
            wire.close()


def refusal_of(called: "Future[Wire]") -> str:
    with pytest.raises(RefusedError) as caught:
        called.result()
    return str(caught.value)


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    made = Meeting(HEAD, MEET_S)
    yield made
    made.end()


@pytest.fixture
def short_meeting() -> Iterator[Meeting]:
    made = Meeting(HEAD, 0.5)
    yield made
    made.end()


def test_hosts_are_numbered_as_they_say_whoever_comes_first(meeting: Meeting) -> None:
    for node in (2, 1):
        meeting.call(member(node))
    assert meeting.numbered() == [(1, "b"), (2, "c")]


def test_hosts_that_do_not_say_are_numbered_by_name() -> None:
    made = Meeting(replace(HEAD, rdzv_backend="c10d"), MEET_S)
    for node in (2, 1):
        made.call(replace(member(node), node_rank=-1, rdzv_backend="c10d"))
    try:
        assert made.numbered() == [(1, "b"), (2, "c")]
    finally:
        made.end()


def test_who_is_missing_is_told_to_all_that_came(short_meeting: Meeting) -> None:
    caller = short_meeting.hello(member(1))
    text = "node 2 of 3 did not come to a:1 within 0.5 s (here: node 0 (host a), node 1 (host b)); see whether each was"
    assert short_meeting.refusal().startswith(text)
    with caller:
        told = json.loads(caller.makefile().readlines()[-1])
    assert told["kind"] == "refused"
    assert told["text"].startswith(text)


def test_who_left_before_the_run_began_is_missing(short_meeting: Meeting) -> None:
    short_meeting.hello(member(1)).close()
    assert short_meeting.refusal().startswith("nodes 1, 2 of 3 did not come")


def test_another_may_come_in_the_place_of_one_who_left(meeting: Meeting) -> None:
    meeting.hello(member(1)).close()
    time.sleep(0.3)
    for node in (1, 2):
        meeting.call(member(node))
    assert meeting.numbered() == [(1, "b"), (2, "c")]


def test_who_waits_hears_of_host_0_every_second(meeting: Meeting) -> None:
    with meeting.hello(member(1)) as caller:
        assert json.loads(caller.makefile().readline()) == {"kind": "beat"}
        meeting.call(member(2))
        assert meeting.numbered() == [(1, "b"), (2, "c")]


def test_what_keeps_one_host_from_taking_part_is_told_to_all(meeting: Meeting) -> None:
    with meeting.hello(member(1)) as caller:
        meeting.call(member(2), refusal="/x: does not exist")
        assert meeting.refusal() == "node 2 (host c): /x: does not exist"
        assert json.loads(caller.makefile().readlines()[-1])["text"] == "node 2 (host c): /x: does not exist"


MISFITS = {
    "nnodes": (member(1, nnodes=4), "node 1 (host b) counts other hosts: nnodes is 4 there and 3 on node 0 (host a)"),
    "ranks": (member(1, nproc_per_node=1), "node 1 (host b) starts another number of ranks: nproc_per_node is 1 there"),
    "backend": (member(1, rdzv_backend="c10d"), "node 1 (host b) numbers hosts otherwise: rdzv_backend is 'c10d'"),
    "version": (member(1, version="2.0"), "host b has another shardrun: version 2.0 there and 1.0 on node 0 (host a)"),
    "head": (
        replace(member(1), node_rank=0),
        "host b has a node_rank that another host has: 0; number the hosts 0 to 2",
    ),
    "range": (replace(member(1), node_rank=3), "node 3 (host b): node_rank is 3; number the hosts 0 to 2"),
}


@pytest.mark.parametrize(("hello", "says"), MISFITS.values(), ids=MISFITS)
def test_a_host_of_the_run_that_does_not_fit_ends_it_at_once(meeting: Meeting, hello: Hello, says: str) -> None:
    told = refusal_of(meeting.call(hello))
    assert told.startswith(says)
    assert meeting.refusal() == told


def test_the_second_of_two_hosts_with_one_number_ends_the_run(meeting: Meeting) -> None:
    with meeting.hello(member(1)):
        assert "host c has a node_rank that another host has: 1" in refusal_of(
            meeting.call(replace(member(2), node_rank=1))
        )
        assert "host c has a node_rank that another host has: 1" in meeting.refusal()


def test_a_host_of_another_run_is_sent_away_and_named_at_the_end(short_meeting: Meeting) -> None:
    says = "node 1 (host b) is another run's: rdzv_id is 'other' there and 'run' on node 0 (host a)"
    assert refusal_of(short_meeting.call(member(1, rdzv_id="other"))).startswith(says)
    assert f"; turned away: {says}" in short_meeting.refusal()


def test_another_version_that_is_of_another_run_does_not_end_this_one(meeting: Meeting) -> None:
    hello = b'{"kind": "hello", "hello": {"version": "9.0", "host": "c", "rdzv_id": "other"}}\n'
    with meeting.say(hello):
        for node in (1, 2):
            meeting.call(member(node))
        assert meeting.numbered() == [(1, "b"), (2, "c")]


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"kind": "hello"}\n',
        b'{"kind": "hello", "hello": {"version": "1.0"}}\n',
        b'{"kind": "hello", "hello": {"version": ["1.0"]}}\n',
        json.dumps({"kind": "hello", "hello": {**asdict(HEAD), "node_rank": "1"}}).encode() + b"\n",
        json.dumps({"kind": "hello", "hello": {**asdict(HEAD), "node_rank": True}}).encode() + b"\n",
        b"",
    ],
)
def test_strangers_are_left_alone(meeting: Meeting, said: bytes) -> None:
    with meeting.say(said) as stranger:
        for node in (1, 2):
            meeting.call(member(node))
        assert meeting.numbered() == [(1, "b"), (2, "c")]
        # And not kept.
        stranger.settimeout(MEET_S)
        assert stranger.recv(10) == b""


def test_a_host_that_refuses_tells_those_that_come() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        endpoint = Endpoint(text="a:1", host="a", port=port, addresses=((socket.AF_INET, "127.0.0.1"),))
        telling = threading.Thread(target=turn_all_away, args=(listener, HEAD, "/x: does not exist", MEET_S))
        telling.start()
        for node in (1, 2):
            with pytest.raises(RefusedError, match=r"^node 0 \(host a\): /x: does not exist$"):
                call(endpoint, member(node), MEET_S)
        telling.join(1.0)
        assert not telling.is_alive()


def test_nobody_at_the_endpoint_is_told_with_the_address() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = int(closed.getsockname()[1])
        endpoint = Endpoint(text=f"a:{port}", host="a", port=port, addresses=((socket.AF_INET, "127.0.0.1"),))
        says = (
            rf"^node 1 \(host b\) cannot reach node 0 at a:{port} \(127.0.0.1\) after 0.3 s: Connection refused; start"
        )
        with pytest.raises(Unreached, match=says):
            call(endpoint, member(1), 0.3)


def test_every_address_of_the_endpoint_is_tried(meeting: Meeting) -> None:
    # Host 0 does not listen at the first.
    endpoint = replace(meeting.endpoint, addresses=((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")))
    for node in (1, 2):
        meeting.call(member(node), endpoint=endpoint)
    assert meeting.numbered() == [(1, "b"), (2, "c")]


def test_what_is_said_of_a_host_is_pure() -> None:
    assert objection(member(1), HEAD, []) is None
    assert other_version(asdict(member(1)), HEAD) is None
    assert other_version("no hello", HEAD) is None
    # A version to come may say other things of itself.
    later = {"version": "9.0", "host": "b", "color": "red"}
    assert str(other_version(later, HEAD)).startswith("host b has another shardrun: version 9.0 there")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "nnodes is 2 but rdzv_endpoint is not given"),
        ({"rdzv_endpoint": "a:1"}, "nnodes is 2 but node_rank is not given; number the hosts 0 to 1, or .* c10d"),
        ({"rdzv_endpoint": "a:1", "node_rank": 2}, "node_rank is 2 but nnodes is 2; hosts count from 0 to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        check_place(ParallelSection(nnodes=2, **settings))


def test_a_host_that_cannot_be_host_0_says_what_it_has() -> None:
    # 192.0.2.0/24 is nobody's (RFC 5737).
    parallel = ParallelSection(nnodes=2, node_rank=0, rdzv_endpoint="192.0.2.1:29400")
    with pytest.raises(RefusedError, match=r"rdzv_endpoint 192\.0\.2\.1:29400 is not an address of host"):
        open_link(parallel, 1)


def test_on_one_host_nobody_is_told_of_a_refusal() -> None:
    begin = time.monotonic()
    refuse_on_all_hosts(ParallelSection(), 2, "/x: does not exist")
    assert time.monotonic() - begin < 0.5
