"""Ranks that share memory, and that nobody watches: the end of one is the end of all, soon."""

import re
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Running, complete
from tests.end_to_end.test_environment import free_port, variables


@pytest.mark.drill
@pytest.mark.parametrize("killed", [0, 1])
def test_C68_a_rank_that_is_killed_is_missed_by_the_other_where_no_launcher_tells_it(
    killed: int, healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    # Neither of the two limits may be what ends it.
    fault = [
        "--inject",
        f"kill:rank={killed},step=2",
        "--heartbeat_s",
        "300",
        "--timeout_s",
        "300",
        "--max_gen_len",
        "8",
    ]
    port = free_port()
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(Running(complete(healthy(2, TINY), *fault), case, env=variables(rank, 2, port)))
            for rank in range(2)
        ]
        pid = ranks[killed].process.pid
        outcomes = [rank.end() for rank in ranks]
    other = outcomes[1 - killed]
    assert [outcomes[killed].code, other.code] == [-signal.SIGKILL, 3], other.err
    (said,) = other.errors
    assert re.search(
        rf"rank {1 - killed} lost contact with another rank while decoding \(step 2, in all-gather number \d+\): "
        rf"rank {killed} \(pid {pid}\) has ended$",
        said,
    )
    assert all(outcome.left == [] for outcome in outcomes)
    # The import of torch, and what it takes to notice.
    assert other.seconds < 12
