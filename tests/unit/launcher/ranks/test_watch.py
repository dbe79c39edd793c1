"""Who is said to hang, from made-up positions: a look a second, and no process."""

from collections.abc import Callable

import pytest

from launcher.ranks.watch import Hang, Seen, Watch, culprits
from parallel.position import Position

HEARTBEAT_S, TIMEOUT_S = 10.0, 30.0


def at_work(changes: int = 1, state: str = "R") -> Seen:
    return Seen(position=Position(changes=changes, phase="decoding", step=5), state=state)


def waits(collectives: int = 7, changes: int = 1, state: str = "S") -> Seen:
    place = Position(changes=changes, phase="decoding", waiting=True, operation="all-reduce", collectives=collectives)
    return Seen(position=place, state=state)


def starting() -> Seen:
    """Importing torch."""
    return Seen(position=Position(changes=1))


def patient() -> Seen:
    return Seen(position=Position(changes=1, phase="reading a message", patient=True))


def first_hang(seen: Callable[[int], dict[int, Seen]], seconds: int, step_s: float = 1.0) -> tuple[int, Hang] | None:
    """After how many looks who is said to hang, where `seen(look)` is what there is to be seen."""
    watch = Watch(HEARTBEAT_S, TIMEOUT_S)
    for look in range(seconds + 1):
        hang = watch.look(seen(look), step_s)
        if hang is not None:
            return look, hang
    return None


def test_a_rank_that_does_nothing_while_another_waits_is_named_within_the_heartbeat() -> None:
    found = first_hang(lambda _: {0: waits(), 1: at_work()}, 60)
    assert found == (10, Hang(ranks=(1,), silent_s=10.0, waiting=0))


def test_a_stopped_rank_is_named_though_it_was_stopped_while_it_waited() -> None:
    found = first_hang(lambda _: {0: waits(), 1: waits(state="T")}, 60)
    assert found == (10, Hang(ranks=(1,), silent_s=10.0, waiting=0))


def test_a_stopped_rank_that_nobody_waits_for_is_no_hang_before_the_timeout() -> None:
    """The only rank that waits is the stopped one itself."""
    found = first_hang(lambda _: {0: at_work(), 1: waits(state="T")}, 60)
    assert found is not None
    assert found[0] == TIMEOUT_S


def test_of_ranks_that_all_wait_the_one_that_lags_behind_is_named() -> None:
    found = first_hang(lambda _: {0: waits(8), 1: waits(7), 2: waits(8)}, 60)
    assert found == (10, Hang(ranks=(1,), silent_s=10.0, waiting=0))


def test_ranks_that_all_wait_in_the_same_collective_have_until_the_timeout() -> None:
    found = first_hang(lambda _: {0: waits(), 1: waits()}, 60)
    assert found == (30, Hang(ranks=(0, 1), silent_s=30.0, waiting=None))


def test_a_rank_that_still_loads_libraries_has_five_minutes() -> None:
    found = first_hang(lambda _: {0: waits(), 1: starting()}, 400)
    assert found == (300, Hang(ranks=(1,), silent_s=300.0, waiting=0))
    both = first_hang(lambda _: {0: starting(), 1: starting()}, 400)
    assert both == (300, Hang(ranks=(0, 1), silent_s=300.0, waiting=None))


def test_several_that_hang_are_named_together() -> None:
    found = first_hang(lambda _: {0: waits(), 1: at_work(), 2: at_work()}, 60)
    assert found == (10, Hang(ranks=(1, 2), silent_s=10.0, waiting=0))


def test_a_rank_that_works_while_another_waits_for_a_silent_one_changes_nothing() -> None:
    found = first_hang(lambda look: {0: waits(), 1: at_work(), 2: at_work(changes=look)}, 60)
    assert found == (10, Hang(ranks=(1,), silent_s=10.0, waiting=0))


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("slow, but with a sign now and then", lambda look: {0: waits(), 1: at_work(changes=look // 9)}),
        ("waiting for one that works", lambda look: {0: waits(), 1: waits(), 2: at_work(changes=look)}),
        ("a person is asked", lambda _: {0: patient(), 1: waits()}),
        ("all at long work of their own, below the timeout", lambda look: {0: at_work(look // 29), 1: at_work()}),
        ("one process that computes", lambda look: {0: at_work(changes=look // 29)}),
        ("all have ended", lambda _: {}),
    ],
)
def test_no_alarm_for(name: str, seen: Callable[[int], dict[int, Seen]]) -> None:
    assert first_hang(seen, 200) is None, name


def test_a_rank_that_waited_long_is_not_blamed_for_what_begins_now() -> None:
    """Rank 0 was silent for as long as rank 1 worked; then both wait, as they should."""
    assert first_hang(lambda look: {0: waits(8), 1: at_work(look) if look < 40 else waits(7, changes=40)}, 49) is None


def test_a_launcher_that_was_stopped_itself_counts_that_time_as_a_second() -> None:
    """Ctrl-Z stops all of them: an hour later the first look has seen no change."""
    watch = Watch(HEARTBEAT_S, TIMEOUT_S)
    stopped = {0: waits(), 1: at_work()}
    watch.look(stopped, 0.2)
    assert watch.look(stopped, 3600.0) is None
    assert watch.look({0: waits(8, 2), 1: at_work(2)}, 0.2) is None


def test_a_heartbeat_of_0_says_nothing_ever() -> None:
    watch = Watch(0.0, TIMEOUT_S)
    assert not any(watch.look({0: waits(), 1: at_work()}, 1.0) for _ in range(500))


def test_where_collectives_give_up_before_the_heartbeat_the_watch_does_a_second_behind_them() -> None:
    """For what is waited for otherwise, as at the meetings of the ranks."""
    for seen in ({0: waits(), 1: at_work()}, {0: waits(), 1: waits()}):
        watch = Watch(HEARTBEAT_S, 4.0)
        looks = [watch.look(seen, 1.0) for _ in range(7)]
        assert [hang is not None for hang in looks] == [False] * 5 + [True] * 2


def test_a_rank_that_ended_is_forgotten() -> None:
    watch = Watch(HEARTBEAT_S, TIMEOUT_S)
    for _ in range(9):
        assert watch.look({0: waits(), 1: at_work()}, 1.0) is None
    assert watch.look({0: waits(9, changes=2)}, 1.0) is None


def test_among_those_that_do_nothing_the_stopped_come_first_then_the_idle_then_the_last() -> None:
    assert culprits({0: waits(), 1: at_work(), 2: at_work(state="t")}) == [2]
    assert culprits({0: waits(), 1: at_work()}) == [1]
    assert culprits({0: waits(3), 1: waits(2)}) == [1]
    assert culprits({0: waits(3), 1: waits(3)}) == [0, 1]
    assert culprits({}) == []


def test_looks_that_are_far_apart_count_in_full_where_that_is_known() -> None:
    """Ranks of a large run watch each other every few seconds."""
    watch = Watch(HEARTBEAT_S, TIMEOUT_S, longest_look_s=8.0)
    found = [watch.look({0: waits(), 1: at_work()}, 4.0) for _ in range(4)]
    assert found == [None, None, None, Hang(ranks=(1,), silent_s=12.0, waiting=0)]
