"""Ranks that somebody else started, as torchrun does, name the one of them that hangs."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Running, complete
from tests.end_to_end.test_environment import free_port, variables


@pytest.mark.parametrize("hanging", [pytest.param(0, marks=pytest.mark.drill), 1])
def test_C70_a_rank_that_hangs_is_named_by_the_others(
    hanging: int, healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    fault = ["--inject", f"hang:rank={hanging},step=2", "--heartbeat_s", "3", "--max_gen_len", "8"]
    port = free_port()
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(Running(complete(healthy(2, TINY), *fault), case, env=variables(rank, 2, port)))
            for rank in range(2)
        ]
        pids = [rank.process.pid for rank in ranks]
        outcomes = [rank.end() for rank in ranks]
    assert [outcome.code for outcome in outcomes] == [3, 3], [outcome.err for outcome in outcomes]
    (said,) = [line for outcome in outcomes for line in outcome.errors]
    assert said.startswith(f"shardrun: error: rank {hanging} (pid {pids[hanging]}, host ")
    assert "hangs while decoding (step 2)" in said
    assert f"rank {1 - hanging} waits, decoding (step 2, in all-gather" in said
    assert all(outcome.left == [] for outcome in outcomes)
    # The import of torch, 3 s of silence, and a second or two for the word to go round.
    assert max(outcome.seconds for outcome in outcomes) < 15
