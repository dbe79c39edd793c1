"""Runs over two hosts of which something fails: both end in time, with the same true cause, and nothing is left."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.end_to_end.command import assert_one_message, assert_says, complete
from tests.end_to_end.hosts_desk import (
    CUT_S,
    ENDLESS,
    PROMPTS,
    Desk,
    Healthy,
    Note,
    assert_parted,
    assert_told,
    desk_at,
    last_line,
    note,
    wait_until_said,
)

NAMES = ("hA", "hB")


@pytest.fixture
def desk(case: Path) -> Iterator[Desk]:
    with desk_at(case) as desk:
        yield desk


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.drill), 1])
def test_a_rank_that_is_killed_is_named_on_both_hosts(
    rank: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    running = desk.start_endless(healthy(2, TINY))
    since = time.monotonic()
    os.kill(running[rank].ranks()[rank], signal.SIGKILL)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    assert_told(outcomes, 3, [f"rank {rank} (pid "])
    assert_told(outcomes, 3, [f"host {NAMES[rank]}) was killed by SIGKILL while decoding"])


@pytest.mark.drill
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_rank_of_four_that_is_killed_is_named_on_both_hosts(
    rank: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    running = desk.start_endless(healthy(2, TINY), ranks=2)
    since = time.monotonic()
    os.kill(running[rank // 2].ranks()[rank], signal.SIGKILL)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    assert_told(outcomes, 3, [f"rank {rank} (pid "])
    assert_told(outcomes, 3, [f"host {NAMES[rank // 2]}) was killed by SIGKILL while decoding"])


@pytest.mark.drill
@pytest.mark.parametrize("phase", ["meeting", "making", "loading", "prefilling"])
def test_a_rank_that_is_killed_before_it_decodes_is_named_on_both_hosts(
    phase: str, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    desk.start_all(complete(healthy(2, TINY)), "--inject", f"kill:rank=1,phase={phase}")
    outcomes = desk.end()
    note(record_property, outcomes, time.monotonic())
    assert_told(outcomes, 3, [f"host hB) was killed by SIGKILL while {phase}"])


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["hang", "stop"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_with_its_host_and_not_the_one_that_waits(
    rank: int, kind: str, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    arguments = complete(healthy(2, TINY), *ENDLESS, prompts=PROMPTS)
    running = desk.start_all(arguments, "--heartbeat_s", "4", "--inject", f"{kind}:rank={rank},step=20")
    wait_until_said(running[rank], f"inject: {kind} comes now")
    since = time.monotonic()
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 4 + 5
    assert_told(outcomes, 3, [f": rank {rank} (pid "])
    assert_told(outcomes, 3, [f"host {NAMES[rank]}) hangs while decoding (step 20"])
    assert_told(outcomes, 3, [f"rank {1 - rank} waits for it"])


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["raise", "exit", "oom"])
def test_a_rank_that_fails_on_host_1_is_told_on_both(
    kind: str, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    arguments = complete(healthy(2, TINY), *ENDLESS, prompts=PROMPTS)
    running = desk.start_all(arguments, "--inject", f"{kind}:rank=1,step=20")
    wait_until_said(running[1], f"inject: {kind} comes now")
    since = time.monotonic()
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 6
    assert_told(outcomes, 3, ["rank 1"])


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.drill), 1])
def test_a_launcher_that_is_killed_takes_its_ranks_along_and_is_named_by_the_other(
    number: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    running = desk.start_endless(healthy(2, TINY))
    since = time.monotonic()
    os.kill(running[number].process.pid, signal.SIGKILL)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    other = outcomes[1 - number]
    assert (outcomes[number].code, other.code) == (-signal.SIGKILL, 3)
    assert_one_message(other, alone=False)
    lost = f"error: node {number} (host {NAMES[number]}) was lost while decoding"
    assert_says(last_line(other), [lost])
    assert_says(last_line(other), ["its launcher ended without a word"])


@pytest.mark.drill
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("number", [0, 1])
def test_both_hosts_stop_when_one_is_told_to(
    number: int, sent: signal.Signals, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    running = desk.start_endless(healthy(2, TINY))
    since = time.monotonic()
    # A terminal sends Ctrl-C to every process of the group.
    (os.killpg if sent is signal.SIGINT else os.kill)(running[number].process.pid, sent)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 5
    assert [outcome.code for outcome in outcomes] == [128 + sent] * 2
    assert [outcome.errors for outcome in outcomes] == [[], []]
    assert last_line(outcomes[number]) == f"shardrun: stopped by {sent.name}"
    word = f"shardrun: node {number} (host {NAMES[number]}) was stopped by {sent.name}"
    assert last_line(outcomes[1 - number]) == word


@pytest.mark.drill
def test_both_hosts_stop_in_time_when_a_rank_is_stuck(desk: Desk, healthy: Healthy, record_property: Note) -> None:
    running = desk.start_endless(healthy(2, TINY))
    os.kill(running[1].ranks()[1], signal.SIGSTOP)
    time.sleep(0.5)
    since = time.monotonic()
    os.kill(running[0].process.pid, signal.SIGTERM)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < 8
    assert [outcome.code for outcome in outcomes] == [143, 143]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.drill)])
def test_a_cut_cable_ends_both_sides_with_the_true_cause(
    ranks: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    desk.start_endless(healthy(2, TINY), ranks=ranks)
    since = time.monotonic()
    desk.hosts.cut(1)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < CUT_S
    assert_parted(outcomes, "decoding")


@pytest.mark.drill
def test_a_cable_that_is_cut_while_loading_ends_both_sides(desk: Desk, healthy: Healthy, record_property: Note) -> None:
    faults = "hang:rank=0,phase=loading;hang:rank=1,phase=loading"
    started = desk.start_all(complete(healthy(2, TINY)), "--inject", faults)
    for running in started:
        wait_until_said(running, "inject: hang comes now, while loading")
    time.sleep(1.5)
    since = time.monotonic()
    desk.hosts.cut(0)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < CUT_S
    assert_parted(outcomes, "loading")


@pytest.mark.drill
def test_a_cable_that_is_cut_as_the_ranks_meet_ends_both_sides(
    desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    started = desk.start_all(complete(healthy(2, TINY)))
    for running in started:
        wait_until_said(running, "2 hosts meet")
    since = time.monotonic()
    desk.hosts.cut(1)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < CUT_S
    assert_parted(outcomes, "")


@pytest.mark.drill
@pytest.mark.parametrize("number", [0, 1])
def test_a_host_that_goes_down_is_named_by_the_other(
    number: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    desk.start_endless(healthy(2, TINY))
    since = time.monotonic()
    desk.hosts[number].go_down()
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < CUT_S
    other = outcomes[1 - number]
    assert other.code == 3
    assert_one_message(other, alone=False)
    assert_says(last_line(other), [f"error: node {number} (host {NAMES[number]}) was lost while decoding"])


@pytest.mark.drill
@pytest.mark.parametrize("number", [0, 1])
def test_a_launcher_that_is_stopped_is_given_up_by_the_other(
    number: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    running = desk.start_endless(healthy(2, TINY))
    since = time.monotonic()
    os.kill(running[number].process.pid, signal.SIGSTOP)
    outcome = running[1 - number].end()
    assert note(record_property, [outcome], since) < CUT_S
    assert outcome.code == 3
    assert_says(last_line(outcome), [f"node {number} (host {NAMES[number]}) was lost while decoding"])
    assert_says(last_line(outcome), ["or it was stopped"])
    os.kill(running[number].process.pid, signal.SIGCONT)
    late = running[number].end()
    assert late.code == 3
    # It goes on and hears that the other did not wait.
    assert_says(last_line(late), [("node 1 (host hB) was lost while decoding",)])
    assert_says(last_line(late), ["for 10 s"])


@pytest.mark.drill
def test_host_1_is_lost_of_three_and_the_others_name_it(case: Path, healthy: Healthy, record_property: Note) -> None:
    with desk_at(case, count=3) as desk:
        running = desk.start_endless(healthy(1, TINY))
        since = time.monotonic()
        os.kill(running[1].process.pid, signal.SIGKILL)
        outcomes = desk.end()
        assert note(record_property, outcomes, since) < 6
        for outcome in (outcomes[0], outcomes[2]):
            assert outcome.code == 3
            assert_says(last_line(outcome), ["node 1 (host hB) was lost while decoding"])


@pytest.mark.drill
@pytest.mark.parametrize("trial", range(16))
def test_whatever_is_killed_at_whatever_moment_both_hosts_end(
    trial: int, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    """A rank or a launcher, on either host, from before they meet to decoding."""
    chance = random.Random(trial)
    number, of_rank, after_s = chance.randrange(2), chance.random() < 0.5, chance.uniform(0.2, 6.0)
    running = desk.start_all(complete(healthy(2, TINY), *ENDLESS, prompts=PROMPTS), "--join_timeout_s", "5")
    time.sleep(after_s)
    victims = list(running[number].ranks().values()) if of_rank else []
    since = time.monotonic()
    os.kill((victims or [running[number].process.pid])[0], signal.SIGKILL)
    outcomes = desk.end()
    assert note(record_property, outcomes, since) < (5 if victims else 9)
    # Before they have met, host 0 waits for another to come, or has left.
    wanted = {3} if victims else {3, 2}
    assert outcomes[1 - number].code in wanted
    assert outcomes[number].code in ({3} if victims else {-signal.SIGKILL})
    assert not any("Traceback" in outcome.err for outcome in outcomes)
    assert len(outcomes[1 - number].errors) == (0 if victims and number == 0 else 1), outcomes[1 - number].err
