"""The all-reduce of every pair: who meets whom, which pair is named, and what becomes of a rank that hangs."""

import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from launcher.doctor.checks import Question
from launcher.doctor.collective import Setup, all_finding, counted, pair_findings, rounds, set_up

ROOT = Path(__file__).resolve().parents[4]
FOUR = Setup(ranks=4, backend="gloo", device="cpu")


@pytest.mark.parametrize("ranks", range(2, 9))
def test_every_pair_meets_once_and_each_rank_once_a_round(ranks: int) -> None:
    found = rounds(ranks)
    assert sorted(pair for pairs in found for pair in pairs) == list(combinations(range(ranks), 2))
    for pairs in found:
        met = [rank for pair in pairs for rank in pair]
        assert len(set(met)) == len(met)


@pytest.mark.parametrize("ranks", [9, 12, 16])
def test_of_many_ranks_neighbours_meet(ranks: int) -> None:
    found = rounds(ranks)
    ring = {*pairwise(range(ranks)), (ranks - 1, 0)}
    assert {pair for pairs in found for pair in pairs} == ring
    for pairs in found:
        met = [rank for pair in pairs for rank in pair]
        assert len(set(met)) == len(met)


@pytest.mark.parametrize(
    ("ranks", "gpus", "chosen", "setup"),
    [
        (None, 0, None, Setup(ranks=2, backend="gloo", device="cpu")),
        (None, 1, None, Setup(ranks=1, backend="gloo", device="cpu")),
        (2, 1, None, Setup(ranks=2, backend="gloo", device="cpu")),
        (None, 3, None, Setup(ranks=3, backend="nccl", device="cuda", visible=("0", "1", "2"))),
        (2, 2, "5,7", Setup(ranks=2, backend="nccl", device="cuda", visible=("5", "7"))),
        (64, 0, None, Setup(ranks=16, backend="gloo", device="cpu")),
    ],
)
def test_ranks_meet_over_nccl_where_each_has_a_gpu(
    ranks: int | None, gpus: int, chosen: str | None, setup: Setup
) -> None:
    assert set_up(Question(ranks=ranks), gpus, chosen) == setup


def test_gpus_are_counted_whatever_else_is_printed() -> None:
    assert counted("a warning\n8\n") == 8
    assert counted("Traceback\n") == 0


def said(outcomes: dict[tuple[int, int], float | str], untried: int = 0) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.found) for finding in pair_findings(outcomes, untried, FOUR)]


def test_pairs_that_work_are_one_line() -> None:
    found = said({(0, 1): 0.0001, (2, 3): 0.0004})
    assert found == [("good", "2 pairs of 4 ranks, gloo on cpu: 16 KiB take 0.1 to 0.4 ms")]


def test_the_pair_that_fails_is_named() -> None:
    found = said({(0, 1): 0.0001, (2, 3): "no answer within 5 s"})
    assert found[0] == ("bad", "ranks 2 and 3 (gloo): no answer within 5 s")
    assert found[1][0] == "good"


def test_a_rank_that_all_failing_pairs_share_is_named() -> None:
    outcomes = {pair: "no answer" if 2 in pair else 0.0001 for pair in combinations(range(4), 2)}
    assert said(outcomes)[0] == ("bad", "every pair with rank 2 fails (with 0, 1, 3): no answer")


def test_one_reason_for_all_pairs_is_one_line() -> None:
    outcomes = dict.fromkeys(combinations(range(4), 2), "no interface")
    assert said(outcomes) == [("bad", "all 6 pairs of 4 ranks fail (gloo): no interface")]


def test_pairs_that_were_not_tried_are_unknown() -> None:
    assert said({(0, 1): 0.0001}, 5)[-1][0] == "unknown"


def test_all_together_may_fail_where_every_pair_works() -> None:
    assert all_finding(0.002, FOUR).found == "4 ranks together: 16 KiB take 2 ms"
    assert all_finding("no answer within 5 s", FOUR).verdict == "bad"


# With an act of its own in place of the all-reduce: rank 1 hangs, dies or is refused when it is asked to.
_SCRIPT = """
import os, time
from launcher.doctor.forks import ForkedRanks

def act(job):
    mine = os.environ.setdefault("ASKED", "0")
    os.environ["ASKED"] = str(int(mine) + 1)
    if job["environment"]["RANK"] == "1" and mine == "0":
        {trouble}
    return {{"job": job["job"], "seconds": float(os.environ["ASKED"])}}

with ForkedRanks(act, "cpu") as ranks:
    for rank in range(4):
        ranks.start(rank)
    print(ranks.reduce([(0, 1), (2, 3)], 1.0))
    ranks.start(1)
    ranks.start(3)
    print(ranks.reduce([(1, 0), (3, 2)], 1.0))
    folder = ranks.folder
print(folder.exists())
"""


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("time.sleep(1000)", "no answer within 1 s"),
        ("os.kill(os.getpid(), 9)", "rank {} died"),
        ('return {"job": job["job"], "error": "no such interface"}', "no such interface"),
    ],
)
def test_a_rank_in_trouble_is_told_and_a_new_one_takes_its_place(trouble: str, reason: str) -> None:
    script = _SCRIPT.format(trouble=trouble)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, left = done.stdout.splitlines()
    assert first == str([reason.format(1), reason.format(3)])
    # The ranks that were rank 1 are new, and so is whoever takes that place now: ranks 0 and 2, for the second time.
    assert second == "[2.0, 2.0]"
    assert left == "False"
