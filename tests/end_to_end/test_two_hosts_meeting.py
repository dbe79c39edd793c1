"""Hosts that do not find each other, or do not fit together: refused in time, with who is missing or what differs."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.end_to_end.command import assert_one_message, assert_says, complete
from tests.end_to_end.hosts_desk import (
    PORT,
    Desk,
    Healthy,
    Note,
    assert_refused_by,
    desk_at,
    last_line,
    note,
    place,
    wait_until_said,
)


@pytest.fixture
def desk(case: Path) -> Iterator[Desk]:
    with desk_at(case) as desk:
        yield desk


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.drill), 1])
def test_what_one_host_refuses_ends_both_and_names_it(
    number: int, desk: Desk, healthy: Healthy, case: Path, record_property: Note
) -> None:
    folders = [healthy(2, TINY), case / "not-here"]
    since = time.monotonic()
    for each in range(2):
        desk.start(each, [*complete(folders[each == number]), *place(each)])
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    assert_refused_by(outcomes, number, [str(case / "not-here")])
    assert_refused_by(outcomes, number, ["does not exist"])


@pytest.mark.drill
def test_a_shard_that_is_damaged_on_one_host_is_named_with_its_rank_and_host(
    desk: Desk, healthy: Healthy, case: Path, record_property: Note
) -> None:
    damaged = Path(shutil.copytree(healthy(2, TINY), case / "damaged"))
    shard = damaged / "consolidated.01.pth"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    since = time.monotonic()
    for number, folder in enumerate([healthy(2, TINY), damaged]):
        desk.start(number, [*complete(folder), *place(number)])
    outcomes = desk.end()
    note(record_property, outcomes, since)
    assert [outcome.code for outcome in outcomes] == [2, 2], [outcome.err for outcome in outcomes]
    for outcome in outcomes:
        assert_says(last_line(outcome), ["rank 1"])
        assert_says(last_line(outcome), ["host hB"])
        assert_says(last_line(outcome), ["consolidated.01.pth"])


@pytest.mark.drill
def test_what_both_refuse_each_says_at_once(desk: Desk, case: Path, record_property: Note) -> None:
    since = time.monotonic()
    desk.start_all(complete(case / "not-here"))
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    for outcome in outcomes:
        assert outcome.code == 2
        assert outcome.err.startswith(f"shardrun: error: {case / 'not-here'}")


@pytest.mark.drill
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("value", "says"), [("ib9", "has no such interface; there are eth0, lo"), ("lo", "reaches no other host")]
)
def test_an_interface_that_cannot_be_right_is_refused_on_both_hosts(
    number: int, value: str, says: str, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    since = time.monotonic()
    for each in range(2):
        env = {"GLOO_SOCKET_IFNAME": value} if each == number else {}
        desk.start(each, [*complete(healthy(2, TINY)), *place(each)], env)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    assert_refused_by(outcomes, number, [f"GLOO_SOCKET_IFNAME is '{value}'"])
    assert_refused_by(outcomes, number, [says])


# The flags of host 1 that differ, and what both say.
MISFITS = {
    "another_number_of_ranks": ({"--nproc_per_node": "2"}, "node 1 (host hB) starts another number of ranks"),
    "another_number_of_hosts": ({"--nnodes": "3"}, "node 1 (host hB) counts other hosts: nnodes is 3 there and 2 on"),
    "another_backend": ({"--rdzv_backend": "c10d"}, "host hB numbers hosts otherwise: rdzv_backend is 'c10d' there"),
    "the_node_rank_of_host_0": ({"--node_rank": "0"}, "host hB has a node_rank that another host has: 0"),
    "another_version": ({}, "host hB has another shardrun: version 9.9.9 there"),
}


@pytest.mark.drill
@pytest.mark.parametrize("name", MISFITS)
def test_a_host_that_was_started_with_another_command_is_refused_on_both(
    name: str, desk: Desk, healthy: Healthy, case: Path, record_property: Note
) -> None:
    different, says = MISFITS[name]
    words = place(1)
    flags = dict(zip(words[::2], words[1::2], strict=True)) | different
    env = {"PYTHONPATH": str(other_version(case)), "PYTHONSAFEPATH": "1"} if name == "another_version" else {}
    since = time.monotonic()
    desk.start(0, [*complete(healthy(2, TINY)), *place(0)])
    desk.wait_until_listening(0)
    desk.start(1, [*complete(healthy(2, TINY)), *(word for item in flags.items() for word in item)], env)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    for outcome in outcomes:
        assert outcome.code == 2, outcome.err
        assert_one_message(outcome, alone=False)
        assert_says(outcome.errors[0], [says])


def other_version(case: Path) -> Path:
    """A copy of the program that says it is another version."""
    root, other = Path(__file__).resolve().parents[2], case / "other"
    for package in ("launcher", "model", "parallel"):
        shutil.copytree(root / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    about = other / "shardrun-9.9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shardrun\nVersion: 9.9.9\n")
    return other


@pytest.mark.drill
def test_a_run_with_another_id_is_sent_away_and_the_right_one_is_let_in(
    desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    words = complete(healthy(2, TINY))
    since = time.monotonic()
    right = desk.start(0, [*words, *place(0), "--rdzv_id", "right"])
    desk.wait_until_listening(0)
    stray = desk.start(1, [*words, *place(1), "--rdzv_id", "stray"]).end()
    note(record_property, [stray], since)
    assert stray.code == 2
    assert_says(stray.errors[0], ["node 1 (host hB) is another run's: rdzv_id is 'stray' there and 'right' on node 0"])
    assert right.process.poll() is None
    desk.running.pop()
    desk.start(1, [*words, *place(1), "--rdzv_id", "right"])
    assert [outcome.code for outcome in desk.end()] == [0, 0]


# Which host is alone, its node rank and endpoint, the seconds that it waits, and what it says.
ALONE = {
    "host_1_never_comes": (0, 0, f"hA:{PORT}", 6, "node 1 of 2 did not come to hA:29400 within 6 s (here: node 0"),
    "host_0_is_not_there": (1, 1, f"hA:{PORT}", 6, "cannot reach node 0 at hA:29400 (10.78.0.1) after 6 s: Connection"),
    "a_host_that_is_down": (1, 1, f"10.78.0.99:{PORT}", 6, "cannot reach node 0 at 10.78.0.99:29400 after 6 s: "),
    "a_name_that_is_unknown": (1, 1, f"nobody:{PORT}", 0, "'nobody' cannot be resolved on hB"),
    "an_endpoint_of_nobody_here": (0, 0, f"10.78.0.99:{PORT}", 0, "is not an address of host hA, which has 10.78.0.1"),
    "a_node_rank_out_of_range": (1, 2, f"hA:{PORT}", 0, "node_rank is 2 but nnodes is 2; hosts count from 0 to 1"),
    "no_port": (1, 1, "hA", 0, "rdzv_endpoint is 'hA'; wanted HOST:PORT"),
    "an_impossible_port": (1, 1, "hA:70000", 0, "rdzv_endpoint is 'hA:70000'; wanted HOST:PORT"),
}


@pytest.mark.drill
@pytest.mark.parametrize("name", ALONE)
def test_a_host_that_stays_alone_says_so_in_time(
    name: str, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    number, rank, endpoint, limit_s, says = ALONE[name]
    flags = ["--join_timeout_s", str(limit_s)] if limit_s else []
    since = time.monotonic()
    running = desk.start(number, [*complete(healthy(2, TINY)), *place(rank, endpoint), *flags])
    if limit_s:
        wait_until_said(running, "shardrun: waiting for node", 5)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < (limit_s + 3 if limit_s else 5)
    assert outcomes[0].code == 2
    assert_one_message(outcomes[0], alone=False)
    assert_says(outcomes[0].errors[0], [says])


@pytest.mark.drill
def test_a_wrong_port_on_one_host_is_told_on_both(desk: Desk, healthy: Healthy, record_property: Note) -> None:
    words = [*complete(healthy(2, TINY)), "--join_timeout_s", "6"]
    since = time.monotonic()
    desk.start(0, [*words, *place(0)])
    desk.start(1, [*words, *place(1, f"hA:{PORT + 1}")])
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 9
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert_says(outcomes[0].errors[0], ["node 1 of 2 did not come to hA:29400 within 6 s"])
    assert_says(outcomes[1].errors[0], ["cannot reach node 0 at hA:29401 (10.78.0.1) after 6 s: Connection refused"])


@pytest.mark.drill
def test_those_that_came_are_told_who_is_missing(case: Path, healthy: Healthy, record_property: Note) -> None:
    with desk_at(case, count=3) as desk:
        since = time.monotonic()
        for number in range(2):
            words = complete(healthy(1, TINY), "--join_timeout_s", "6")
            desk.start(number, [*words, *place(number, hosts=3)])
        outcomes = desk.end()
        assert note(record_property, outcomes, since) < 9
    for outcome in outcomes:
        assert outcome.code == 2
        assert_says(outcome.errors[0], ["node 2 of 3 did not come to hA:29400 within 6 s"])
        assert_says(outcome.errors[0], ["(here: node 0 (host hA), node 1 (host hB))"])


@pytest.mark.drill
def test_a_cable_that_is_cut_while_the_third_host_is_waited_for_is_told(
    case: Path, healthy: Healthy, record_property: Note
) -> None:
    with desk_at(case, count=3) as desk:
        for number in range(2):
            desk.start(number, [*complete(healthy(1, TINY), "--join_timeout_s", "20"), *place(number, hosts=3)])
        wait_until_said(desk.running[1], "node 0 is at hA:29400; waiting for other hosts")
        since = time.monotonic()
        desk.hosts.cut(1)
        second = desk.running[1].end()
        assert time.monotonic() - since < 12
        outcomes = [desk.running[0].end(), second]
        note(record_property, outcomes, since)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert_says(outcomes[0].errors[0], ["nodes 1, 2 of 3 did not come"])
    assert_says(outcomes[1].errors[0], ["node 0 at hA:29400 has left before the run began (nothing was heard of it"])


@pytest.mark.drill
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_host_that_is_stopped_while_it_waits_leaves_nobody_waiting_for_it(
    number: int, sent: signal.Signals, case: Path, healthy: Healthy, record_property: Note
) -> None:
    with desk_at(case, count=3) as desk:
        for each in range(2):
            desk.start(each, [*complete(healthy(1, TINY), "--join_timeout_s", "12"), *place(each, hosts=3)])
        wait_until_said(desk.running[1], "node 0 is at hA:29400; waiting for other hosts")
        since = time.monotonic()
        desk.running[number].process.send_signal(sent)
        outcomes = desk.end()
        note(record_property, outcomes, since)
    assert outcomes[number].code == (-sent if sent is signal.SIGKILL else 128 + sent)
    if sent is not signal.SIGKILL:
        assert last_line(outcomes[number]) == f"shardrun: stopped by {sent.name}"
    other = outcomes[1 - number]
    assert other.code == 2
    says = "node 0 at hA:29400 has left before the run began" if number == 0 else "nodes 1, 2 of 3 did not come"
    assert_says(other.errors[0], [says])
