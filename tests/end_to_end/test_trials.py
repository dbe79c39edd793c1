"""Many trials at random moments: a rank killed, the launcher killed, two runs beside each other. Seeds are in the ids.

A few in every run, as many as the numbers want with the drills (`-m drill -k trials -s` prints the seconds).
"""

import json
import os
import random
import re
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.command import Running, assert_done, assert_one_message, complete, run
from tests.end_to_end.drills import ENDED_S, ENDLESS, PROMPTS, Healthy, hit, two_ranks, wait_for_ranks, wait_for_words

FEW = [pytest.param(range(2), id="few")]
FIFTY = [*FEW, pytest.param(range(100, 150), id="fifty", marks=pytest.mark.drill)]
HUNDRED = [
    pytest.param(range(1), id="few"),
    pytest.param(range(200, 300), id="hundred", marks=pytest.mark.drill),
]
# Loading and prefilling of a tiny model are over at once: here they take about a second each.
SLOW = ";".join(
    f"slow:rank={rank},phase={phase},seconds={seconds}"
    for rank in (0, 1)
    for phase, seconds in (("loading", 0.04), ("prefilling", 0.8))
)
_AT_WORK_S = 3.0


def kill_a_rank(folder: Path, case: Path, seed: int) -> tuple[str, float]:
    """Kill one of two ranks at a random moment of loading, prefilling or decoding; where that was, and the seconds."""
    draw = random.Random(seed)
    rank, delay_s = draw.randrange(2), draw.uniform(0, _AT_WORK_S)
    asked = complete(folder, *ENDLESS, "--nproc_per_node", "2", "--inject", SLOW, prompts=PROMPTS)
    with Running(asked, case) as running:
        wait_for_words(running, "MP 2, dtype")
        pid = running.ranks()[rank]
        time.sleep(delay_s)
        hit(running, pid)
        outcome = running.end()
        seconds = time.monotonic() - running.fault_s
    where = f"seed {seed}: rank {rank} after {delay_s:.2f} s: {outcome.err}"
    assert (outcome.code, outcome.left) == (3, []), where
    assert_one_message(outcome, alone=False)
    found = re.search(rf"rank {rank} \(pid {pid}, host \S+\) was killed by SIGKILL while (\w+)", outcome.errors[0])
    assert found is not None, where
    assert seconds < ENDED_S, where
    assert list((case / "tmp").iterdir()) == []
    return found[1], seconds


@pytest.mark.parametrize("seeds", FIFTY)
def test_C68_trials_a_rank_is_killed_at_any_moment(seeds: Sequence[int], healthy: Healthy, case: Path) -> None:
    trials = [kill_a_rank(two_ranks(healthy), case, seed) for seed in seeds]
    report("a rank killed", [seconds for _, seconds in trials])
    print({phase: [place for place, _ in trials].count(phase) for phase in sorted({place for place, _ in trials})})


def report(what: str, seconds: Sequence[float]) -> None:
    """For whoever runs this with -s."""
    print(f"\n{what}, {len(seconds)} trials: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")


@pytest.mark.parametrize("seeds", FIFTY)
def test_C74_trials_no_rank_outlives_a_launcher_that_is_killed_at_any_moment(
    seeds: Sequence[int], healthy: Healthy, case: Path
) -> None:
    """The first moments too, when ranks are being started."""
    found = []
    for seed in seeds:
        draw = random.Random(seed)
        asked = complete(two_ranks(healthy), *ENDLESS, "--nproc_per_node", "2", prompts=PROMPTS)
        with Running(asked, case) as running:
            wait_for_a_rank(running)
            # Half of them within the first tenth of a second, in which a rank has not asked to die with its parent.
            time.sleep(draw.uniform(0, draw.choice((0.1, _AT_WORK_S))))
            hit(running, running.process.pid)
            outcome = running.end(grace_s=2.0)
            found.append(time.monotonic() - running.fault_s)
        assert outcome.code == -signal.SIGKILL
        assert outcome.left == [], f"seed {seed}"
    report("the launcher killed", found)


def wait_for_a_rank(running: Running) -> None:
    while len(running.members()) < 2:
        assert running.process.poll() is None, running.err
        time.sleep(0.002)


def answer_flags(folder: Path, words: str) -> list[str]:
    return complete(
        folder,
        "--nproc_per_node",
        "2",
        "--max_gen_len",
        "8",
        "--json",
        "--log_dir",
        "logs",
        prompts=json.dumps([words]),
    )


@pytest.fixture(scope="module")
def right(healthy: Healthy, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What a run prints that has the machine to itself."""
    known: dict[str, str] = {}

    def of(words: str) -> str:
        if words not in known:
            outcome = run(answer_flags(two_ranks(healthy), words), tmp_path_factory.mktemp("right"))
            assert_done(outcome)
            known[words] = outcome.out
        return known[words]

    return of


PAIR = ("the old boat", "a small grey cat")


@pytest.mark.parametrize("seeds", HUNDRED)
def test_trials_two_runs_at_once_do_not_disturb_each_other(
    seeds: Sequence[int], healthy: Healthy, case: Path, right: Callable[[str], str]
) -> None:
    """With the same temporary folder and the same folder of logs, while a third is killed beside them."""
    expected = [right(words) for words in PAIR]
    for seed in seeds:
        draw = random.Random(seed)
        with ExitStack() as stack:
            third = stack.enter_context(Running(complete(two_ranks(healthy), *ENDLESS, "--nproc_per_node", "2"), case))
            runs = [stack.enter_context(Running(answer_flags(two_ranks(healthy), words), case)) for words in PAIR]
            time.sleep(draw.uniform(0.2, 1.5))
            os.kill(third.process.pid, signal.SIGKILL)
            outcomes = [one.end() for one in runs]
            assert third.end(grace_s=2.0).left == []
        for outcome, answer in zip(outcomes, expected, strict=True):
            assert_done(outcome)
            assert outcome.out == answer, f"seed {seed}"
        # Those of the killed launcher are all that is left, for as long as they may be somebody's who just begins.
        left = list((case / "tmp").iterdir())
        assert all(path.name.startswith("shardrun-") for path in left)
        make_old(left)
    assert len(list((case / "logs").iterdir())) == 2 * len(seeds)
    assert_done(run(answer_flags(two_ranks(healthy), PAIR[0]), case))
    assert list((case / "tmp").iterdir()) == []


def make_old(folders: Sequence[Path]) -> None:
    for folder in folders:
        os.utime(folder, (time.time() - 60, time.time() - 60))


@pytest.mark.parametrize("runs", [pytest.param(2, id="few"), pytest.param(200, id="many", marks=pytest.mark.drill)])
def test_C78_trials_runs_that_nothing_disturbs_end_well(
    runs: int, healthy: Healthy, case: Path, right: Callable[[str], str]
) -> None:
    """Two beside each other: they also wait for each other's cores."""
    answer = right(PAIR[0])
    for _ in range(runs // 2):
        with ExitStack() as stack:
            both = [stack.enter_context(Running(answer_flags(two_ranks(healthy), PAIR[0]), case)) for _ in range(2)]
            for outcome in [one.end() for one in both]:
                assert_done(outcome)
                assert outcome.out == answer
    assert list((case / "tmp").iterdir()) == []


@pytest.mark.drill
def test_folders_of_living_runs_are_never_taken_for_abandoned_ones(healthy: Healthy, case: Path) -> None:
    with Running(complete(two_ranks(healthy), *ENDLESS, "--nproc_per_node", "2"), case) as living:
        wait_for_ranks(living)
        wait_for_words(living, "loaded")
        (folder,) = (case / "tmp").iterdir()
        make_old([folder])
        assert_done(run(answer_flags(two_ranks(healthy), PAIR[0]), case))
        assert folder.is_dir()
        assert living.process.poll() is None
        os.kill(living.process.pid, signal.SIGTERM)
        assert living.end().code == 128 + signal.SIGTERM
    assert not folder.exists()
