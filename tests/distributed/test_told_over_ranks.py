"""What rank 0 says and the others wait for, as in a chat."""

import time
from dataclasses import replace

import pytest
import torch.distributed as dist

from parallel import RefusedError, World
from tests.distributed.pool import Pool
from tests.distributed.verdicts import Verdict, the_same_on_all, verdict

SEVERAL = pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)


def told_twice(world: World, texts: list[str]) -> Verdict:
    def act() -> str:
        assert world.env.rank == 0
        return texts.pop(0)

    return verdict(lambda: [world.told("reading", act) for _ in range(2)])


def told_late(world: World, pause_s: float, timeout_s: float) -> Verdict:
    """Rank 0 takes its time; the store is a corner of its own, so that nothing is out of step after."""
    assert world.store is not None
    corner = dist.PrefixStore("told_late", world.store)
    hurried = replace(world, store=corner, timeout_s=timeout_s, owns_group=False)

    def act() -> str:
        time.sleep(pause_s)
        return "at last"

    return verdict(lambda: hurried.told("reading", act))


def told_nothing(world: World, error: BaseException) -> Verdict:
    def act() -> str:
        raise error

    try:
        return verdict(lambda: world.told("reading", act))
    except KeyboardInterrupt:
        return "KeyboardInterrupt", ""


def test_every_rank_is_told_what_rank_0_says(ranks: Pool) -> None:
    # Also what a terminal may send: half a surrogate pair, and what looks like the end.
    texts = ["naïve 😀 \udce9\n\x00", ""]
    assert the_same_on_all(ranks.run(told_twice, texts)) == ("returned", str(texts))


@SEVERAL
def test_the_others_wait_longer_than_for_anything_else(ranks: Pool) -> None:
    assert the_same_on_all(ranks.run(told_late, 0.7, 0.2)) == ("returned", "at last")


@SEVERAL
def test_what_rank_0_refuses_is_refused_on_all(ranks: Pool) -> None:
    refused = ranks.run(told_nothing, RefusedError("line 3 is not UTF-8 text"))
    assert the_same_on_all(refused) == ("RefusedError", "line 3 is not UTF-8 text")


@SEVERAL
def test_nobody_waits_for_a_rank_0_that_has_failed_or_was_stopped(ranks: Pool) -> None:
    for error, kind in ((OSError("disk is gone"), "OSError"), (KeyboardInterrupt(), "KeyboardInterrupt")):
        first, *others = ranks.run(told_nothing, error)
        assert first[0] == kind
        assert the_same_on_all(others) == ("PeerFailedError", f"rank 0 failed while reading: {kind}: {error}")
