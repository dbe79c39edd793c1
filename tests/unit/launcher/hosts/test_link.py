"""The launchers of two and three hosts, linked over the loopback device: what each hears of the others."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from launcher.hosts.address import Endpoint
from launcher.hosts.head import Head
from launcher.hosts.hello import Hello
from launcher.hosts.link import Alone, Link, News, Place, State
from launcher.hosts.member import Member
from launcher.ranks.ends import RankEnd
from launcher.ranks.report import Failure
from launcher.ranks.verdict import Verdict
from launcher.ranks.watch import Hang, Seen
from parallel.errors import RefusedError
from parallel.position import Position

MEET_S = 10.0
NAMES = "abc"
DECODING = Position(changes=9, phase="decoding", step=3)


def state(rank: int, *, failed: bool = False, done: bool = False) -> State:
    return State(seen={rank: Seen(position=DECODING, state="R")}, failed=failed, done=done)


def ended(rank: int, code: int, *, by_itself: bool = True, text: str = "") -> RankEnd:
    """How a rank ended; `text`: what it said of why."""
    failure = Failure(rank=rank, exit_code=code, text=text, cause=True, time_s=1.0) if text else None
    seen_s = 1.0 if by_itself else None
    about: dict[str, Any] = {"pid": 100 + rank, "host": NAMES[rank], "code": code, "ended_s": seen_s}
    return RankEnd(rank=rank, position=DECODING, failure=failure, **about)


class Linked:
    """The launchers of so many hosts, met."""

    def __init__(self, count: int) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
        self.endpoint = Endpoint(text="a:1", host="a", port=port, addresses=((socket.AF_INET, "127.0.0.1"),))
        self.pool = ThreadPoolExecutor(count)
        head = self.pool.submit(Head, listener, "127.0.0.1", self._hello(0, count), self.endpoint, MEET_S)
        others = [self._hello(node, count) for node in range(1, count)]
        members = [self.pool.submit(Member, hello, self.endpoint, MEET_S) for hello in others]
        self.head, self.members = head.result(), [member.result() for member in members]

    def _hello(self, node: int, count: int) -> Hello:
        given: dict[str, Any] = {"rdzv_id": "x", "nnodes": count, "rdzv_backend": "static", "nproc_per_node": 2}
        return Hello(**given, node_rank=node, host=NAMES[node], pid=os.getpid(), version="1")

    def begin(self, attempt: int = 0) -> list[Place]:
        return [self.head.begin(attempt), *(member.begin(attempt) for member in self.members)]

    def close(self) -> None:
        for member in self.members:
            member.close()
        self.head.close()
        self.pool.shutdown()


@pytest.fixture
def two() -> Iterator[Linked]:
    made = Linked(2)
    yield made
    made.close()


@pytest.fixture
def three() -> Iterator[Linked]:
    made = Linked(3)
    yield made
    made.close()


def until(link: Link, state: State, wanted: Callable[[News], bool]) -> News:
    """The first news that are wanted, within seconds."""
    deadline = time.monotonic() + 5
    while not wanted(news := link.exchange(state)):
        assert time.monotonic() < deadline, news
        time.sleep(0.005)
    return news


def test_ranks_are_numbered_host_by_host_and_meet_at_one_port_of_host_0(three: Linked) -> None:
    places = three.begin()
    assert [(place.node, place.first_rank, place.world_size) for place in places] == [(0, 0, 6), (1, 2, 6), (2, 4, 6)]
    assert {place.master for place in places} == {places[0].master}
    assert all(place.variables["GLOO_SOCKET_IFNAME"] == "lo" for place in places)
    # Whoever asks for any port does not get rank 0's; rank 0 does.
    assert places[0].master is not None
    with socket.socket() as store:
        store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        store.bind(places[0].master)
        store.listen()


def test_a_run_is_done_when_the_ranks_of_all_hosts_are(two: Linked) -> None:
    two.begin()
    assert not two.head.exchange(state(0, done=True)).done
    assert not two.members[0].exchange(state(2, done=True)).done
    until(two.head, state(0, done=True), lambda news: news.done)
    two.head.conclude(Verdict(code=0), again=False)
    assert not until(two.members[0], state(2, done=True), lambda news: news.done).stop


def test_a_host_that_is_done_first_waits_for_the_others(two: Linked) -> None:
    two.begin()
    two.members[0].exchange(state(2, done=True))
    for _ in range(20):
        news = two.head.exchange(state(0)), two.members[0].exchange(state(2, done=True))
        assert not any(each.done or each.stop for each in news)
        time.sleep(0.005)


def test_host_0_hears_where_the_ranks_of_others_are(three: Linked) -> None:
    three.begin()
    for node, member in enumerate(three.members, 1):
        member.exchange(state(2 * node))
    news = until(three.head, state(0), lambda news: len(news.others) == 2)
    assert news.others == {2: Seen(position=DECODING, state="R"), 4: Seen(position=DECODING, state="R")}


def test_the_first_failure_ends_all_hosts_and_each_hears_why(three: Linked) -> None:
    three.begin()
    first, second = three.members
    first.exchange(state(1, failed=True))
    until(three.head, state(0), lambda news: news.stop)
    until(second, state(2), lambda news: news.stop)
    told = [
        three.pool.submit(first.decide, [ended(1, -signal.SIGKILL)], None),
        three.pool.submit(second.decide, [ended(2, -signal.SIGTERM, by_itself=False)], None),
    ]
    verdict = three.head.decide([ended(0, -signal.SIGTERM, by_itself=False)], None)
    assert not three.head.conclude(verdict, again=False)
    assert verdict.text.startswith("rank 1 (pid 101, host b) was killed by SIGKILL while decoding (step 3)")
    for heard in (each.result() for each in told):
        assert (heard.code, heard.stopped) == (3, True)
        assert heard.text == f"the run failed, as node 0 (host a) says: {verdict.text}"


def test_a_host_whose_ranks_were_done_hears_of_a_failure_behind_them(two: Linked) -> None:
    two.begin()
    member = two.members[0]
    member.exchange(state(1, done=True))
    two.head.exchange(state(0, failed=True))
    until(member, state(1, done=True), lambda news: news.stop)
    told = two.pool.submit(member.decide, [ended(1, 0)], None)
    begin = time.monotonic()
    two.head.conclude(two.head.decide([ended(0, 3, text="rank 0 failed")], None), again=False)
    assert time.monotonic() - begin < 1
    assert told.result().code == 3


def test_what_a_rank_refuses_is_told_with_its_host(two: Linked) -> None:
    two.begin()
    told = two.pool.submit(two.members[0].decide, [ended(1, 2, text="rank 1: /x is damaged")], None)
    verdict = two.head.decide([ended(0, 2, text="rank 1: /x is damaged")], None)
    two.head.conclude(verdict, again=False)
    assert (verdict.code, verdict.text) == (2, "rank 1 (host b): /x is damaged")
    assert told.result().text == "the run was refused, as node 0 (host a) says: rank 1 (host b): /x is damaged"


def test_a_rank_that_hangs_elsewhere_is_named_by_host_0(two: Linked) -> None:
    two.begin()
    told = two.pool.submit(two.members[0].decide, [ended(1, -signal.SIGTERM, by_itself=False)], None)
    hang = Hang(ranks=(1,), silent_s=9.0, waiting=0)
    verdict = two.head.decide([ended(0, -signal.SIGTERM, by_itself=False)], hang)
    two.head.conclude(verdict, again=False)
    assert verdict.text.startswith("rank 1 (pid 101, host b) hangs while decoding")
    assert told.result().code == 3


def test_a_launcher_that_dies_is_named_with_what_its_ranks_did(two: Linked) -> None:
    two.begin()
    two.members[0].exchange(state(1))
    until(two.head, state(0), lambda news: bool(news.others))
    two.members[0].wire.close()
    until(two.head, state(0), lambda news: news.stop)
    verdict = two.head.decide([ended(0, 3)], None)
    says = "node 1 (host b) was lost while decoding (step 3): its launcher ended without a word"
    assert (verdict.code, verdict.text.startswith(says)) == (3, True), verdict.text
    assert not two.head.conclude(verdict, again=True)  # not without it


def test_host_0_that_dies_is_named_with_what_the_ranks_here_did(two: Linked) -> None:
    two.begin()
    for peer in two.head.peers:
        peer.wire.close()
    until(two.members[0], state(1), lambda news: news.stop)
    verdict = two.members[0].decide([ended(1, 3)], None)
    says = "node 0 (host a) was lost while decoding (step 3): its launcher ended without a word"
    assert (verdict.code, verdict.text.startswith(says), verdict.stopped) == (3, True, False), verdict.text
    assert not two.members[0].conclude(verdict, again=True)


def test_a_cause_that_a_rank_knows_goes_before_a_launcher_that_was_lost(two: Linked) -> None:
    two.begin()
    two.members[0].wire.close()
    verdict = two.head.decide([ended(0, 3, text="rank 0 is out of memory")], None)
    assert verdict.text == "rank 0 (pid 100, host a) is out of memory"
    for peer in two.head.peers:
        peer.wire.close()


def test_host_0_that_dies_before_the_beginning_is_told(two: Linked) -> None:
    for peer in two.head.peers:
        peer.wire.close()
    with pytest.raises(RefusedError, match="node 0 at a:1 has left before the run began"):
        two.members[0].begin(0)


def test_a_host_that_dies_at_the_beginning_is_lost(two: Linked) -> None:
    two.members[0].wire.close()
    two.head.begin(0)
    until(two.head, state(0), lambda news: news.stop)
    assert two.head.decide([], None).text.startswith("node 1 (host b) was lost while starting")


def test_a_host_that_was_told_to_stop_stops_the_others(three: Linked) -> None:
    three.begin()
    three.members[0].stopped(signal.SIGTERM)
    three.members[0].close()
    until(three.head, state(0), lambda news: news.stop)
    told = three.pool.submit(three.members[1].decide, [ended(2, -15, by_itself=False)], None)
    begin = time.monotonic()
    verdict = three.head.decide([ended(0, -15, by_itself=False)], None)
    assert time.monotonic() - begin < 1
    three.head.conclude(verdict, again=True)
    wanted = Verdict(code=143, text="node 1 (host b) was stopped by SIGTERM", stopped=True)
    assert (verdict, told.result()) == (wanted, wanted)


def test_a_host_that_has_given_up_says_so_to_one_that_was_only_stopped(two: Linked) -> None:
    two.begin()
    two.members[0]._lost = "nothing was heard of it for 10 s"  # what ten seconds of silence leave behind
    two.members[0].decide([ended(1, 3)], None)
    until(two.head, state(0), lambda news: news.stop)
    says = "node 1 (host b) was lost while starting: it has given up, since node 0 (host a) was lost: nothing was heard"
    assert two.head.decide([ended(0, 3)], None).text.startswith(says)


def test_last_words_are_heard_though_the_connection_breaks(two: Linked) -> None:
    """The member leaves with a beat of host 0's unread: its system resets the connection."""
    two.begin()
    two.head.exchange(state(0))
    time.sleep(0.05)
    two.members[0].wire.send("stopped", signal=int(signal.SIGINT))
    two.members[0].wire.close()
    until(two.head, state(0), lambda news: news.stop)
    assert two.head.decide([], None).text == "node 1 (host b) was stopped by SIGINT"


def test_host_0_that_was_told_to_stop_stops_the_others(two: Linked) -> None:
    two.begin()
    two.head.stopped(signal.SIGINT)
    until(two.members[0], state(1), lambda news: news.stop)
    heard = two.members[0].decide([ended(1, -15, by_itself=False)], None)
    assert heard == Verdict(code=130, text="node 0 (host a) was stopped by SIGINT", stopped=True)


def test_another_attempt_begins_on_every_host_and_knows_nothing_of_the_last(two: Linked) -> None:
    member, head = two.members[0], two.head
    two.begin()
    member.exchange(state(1, failed=True))
    until(head, state(0), lambda news: news.stop)
    told = two.pool.submit(member.decide, [ended(1, -signal.SIGKILL)], None)
    assert head.conclude(head.decide([ended(0, 3)], None), again=True)
    assert member.conclude(told.result(), again=False)
    # What was on its way when the attempt ended.
    member.wire.send("beat", attempt=0, ranks={}, failed=True, done=False)
    member.wire.send("ended", attempt=0, ends=[])
    second = two.begin(1)
    assert second[0].master == second[1].master
    for _ in range(10):
        news = head.exchange(state(0)), member.exchange(state(1))
        assert not any(each.done or each.stop for each in news)
        time.sleep(0.01)


def test_leaving_takes_no_time_once_the_others_have_left(two: Linked) -> None:
    two.begin()
    two.members[0].close()
    begin = time.monotonic()
    two.head.close()
    assert time.monotonic() - begin < 0.2


def test_alone_there_is_nobody_to_tell() -> None:
    alone = Alone(Place(world_size=2))
    assert alone.begin(0) == alone.place
    assert alone.exchange(state(0, done=True)) == News(done=True)
    assert [alone.conclude(Verdict(code=3), again) for again in (True, False)] == [True, False]
