"""Check: a small all-reduce of real ranks, on every pair under a time limit, then of all together."""

import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.doctor.asking import ask
from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, plural, trying, unknown
from launcher.doctor.devices import visible_devices
from launcher.doctor.driver import gpu_files
from launcher.doctor.forks import ForkedRanks
from launcher.doctor.table import TOTAL_S

_COUNT = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
_COUNT_S = 12.0
_GLOO_S = 5.0
# With the start of CUDA in both ranks and of NCCL between them.
_NCCL_S = 8.0
# Left of the whole for the last pairs to be given up and the report to be made.
_SPARE_S = 2.0
_ALL_PAIRS = 8
_MOST_RANKS = 16
_NAME = "all-reduce"

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who meets whom. `visible`: what CUDA_VISIBLE_DEVICES is for each rank; empty on the CPU."""

    ranks: int
    backend: str
    device: str
    visible: tuple[str, ...] = ()

    @property
    def pair_s(self) -> float:
        """What a pair is given."""
        return _NCCL_S if self.backend == "nccl" else _GLOO_S


def look(question: Question) -> Findings:
    until = time.monotonic() + TOTAL_S - _SPARE_S
    # In a process of its own: where it touches CUDA, no fork can.
    counting = ask(_COUNT, _COUNT_S) if question.device != "cpu" and gpu_files() else None
    yield trying(_NAME, "importing torch", "see the lines on torch and memory")
    # Here and not with the others: it loads torch, which may be broken or slow.
    act = importlib.import_module("launcher.doctor.pair_rank").answer
    yield trying(_NAME, "counting GPUs", "the driver hangs (see driver)")
    gpus = counted(counting.answer().text) if counting is not None else 0
    setup = set_up(question, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if setup.ranks < 2:
        yield note(_NAME, "one rank needs none; --ranks 2 tries two")
        return
    if question.usual_ranks > setup.ranks:
        yield note(_NAME, f"{setup.ranks} of {question.ranks} ranks are tried")
    yield trying(_NAME, f"starting {setup.ranks} ranks", "see the lines on temporary files, processes and memory")
    with ForkedRanks(act, setup.device, setup.visible) as ranks:
        for number in range(setup.ranks):
            ranks.start(number)
        yield from _tried(ranks, setup, until)


def counted(text: str) -> int:
    """The number that `_COUNT` printed, whatever else was."""
    return next((int(line) for line in text.splitlines() if line.isdecimal()), 0)


def set_up(question: Question, gpus: int, chosen: str | None) -> Setup:
    """NCCL with a GPU for each rank where there are several, else gloo. `chosen`: CUDA_VISIBLE_DEVICES."""
    if gpus < 2:
        ranks = question.ranks or (1 if gpus else question.usual_ranks)
        return Setup(ranks=min(ranks, _MOST_RANKS), backend="gloo", device="cpu")
    ranks = min(question.ranks or gpus, gpus, _MOST_RANKS)
    # Torch has counted; which of the words are indices beyond the host's is left to it.
    names = [str(index) for index in range(gpus)] if chosen is None else visible_devices(chosen, 2**16)
    return Setup(ranks=ranks, backend="nccl", device="cuda", visible=tuple(names[:ranks]))


def rounds(ranks: int) -> list[list[Pair]]:
    """Every pair once, in rounds in which each rank has one partner; with many ranks, neighbours alone."""
    if ranks > _ALL_PAIRS:
        neighbours = [(rank, (rank + 1) % ranks) for rank in range(ranks)]
        even, odd = neighbours[0 : ranks - 1 : 2], neighbours[1 : ranks - 1 : 2]
        last = neighbours[ranks - 1]
        return [even, [*odd, last]] if ranks % 2 == 0 else [even, odd, [last]]
    # The circle method: one stands still, the others walk around it.
    players = list(range(ranks + ranks % 2))
    found = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(pair), max(pair)) for pair in pairs if max(pair) < ranks])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def _tried(ranks: ForkedRanks, setup: Setup, until: float) -> Findings:
    outcomes: dict[Pair, float | str] = {}
    left = rounds(setup.ranks)
    while left and time.monotonic() + setup.pair_s < until:
        pairs = left.pop(0)
        shown = ", ".join(f"{one}-{other}" for one, other in pairs)
        yield trying(_NAME, f"an all-reduce of ranks {shown}", _remedy(setup))
        outcomes.update(zip(pairs, ranks.reduce(pairs, setup.pair_s), strict=True))
        for number in {number for pair in pairs if isinstance(outcomes[pair], str) for number in pair}:
            ranks.start(number)
    yield from pair_findings(outcomes, sum(map(len, left)), setup)
    if setup.ranks > 2 and not any(isinstance(outcome, str) for outcome in outcomes.values()):
        yield trying(_NAME, f"an all-reduce of {setup.ranks} ranks", _remedy(setup))
        limit_s = max(1.0, min(setup.pair_s, until - time.monotonic()))
        yield all_finding(ranks.reduce([range(setup.ranks)], limit_s)[0], setup)


def pair_findings(outcomes: dict[Pair, float | str], untried: int, setup: Setup) -> Iterator[Finding]:
    """The pairs that fail by name, and the time that the others take."""
    failed = {pair: outcome for pair, outcome in outcomes.items() if isinstance(outcome, str)}
    times = [outcome for outcome in outcomes.values() if isinstance(outcome, float)]
    yield from _failures(failed, len(outcomes), setup)
    if times:
        found = f"{plural(len(times), 'pair')} of {setup.ranks} ranks, {setup.backend} on {setup.device}: 16 KiB take"
        yield good(_NAME, f"{found} {_span(min(times), max(times))}")
    if untried:
        yield unknown(
            _NAME, f"{plural(untried, 'pair')} not tried: no time was left", "try again alone: --only collective"
        )


def _failures(failed: dict[Pair, str], tried: int, setup: Setup) -> Iterator[Finding]:
    reasons = set(failed.values())
    if len(failed) == tried > 1 and len(reasons) == 1:
        yield bad(
            _NAME, f"all {tried} pairs of {setup.ranks} ranks fail ({setup.backend}): {reasons.pop()}", _remedy(setup)
        )
        return
    counts = Counter(rank for pair in failed for rank in pair)
    common = [rank for rank, count in counts.items() if count == len(failed)]
    if 1 < len(failed) < tried and len(common) == 1:
        others = ", ".join(str(rank) for pair in failed for rank in pair if rank != common[0])
        found = f"every pair with rank {common[0]} fails (with {others}): {next(iter(failed.values()))}"
        yield bad(_NAME, found, _remedy(setup))
        return
    for (one, other), reason in list(failed.items())[:4]:
        yield bad(_NAME, f"ranks {one} and {other} ({setup.backend}): {reason}", _remedy(setup))
    if len(failed) > 4:
        more = ", ".join(f"{one}-{other}" for one, other in list(failed)[4:])
        yield bad(_NAME, f"and pairs {more}", _remedy(setup))


def all_finding(outcome: float | str, setup: Setup) -> Finding:
    """What all ranks together did, after every pair had worked."""
    if isinstance(outcome, str):
        return bad(_NAME, f"{setup.ranks} ranks together: {outcome}; every pair alone works", _remedy(setup))
    return good(_NAME, f"{setup.ranks} ranks together: 16 KiB take {_span(outcome, outcome)}")


def _span(low: float, high: float) -> str:
    return f"{low * 1e3:.2g} ms" if f"{low:.2g}" == f"{high:.2g}" else f"{low * 1e3:.2g} to {high * 1e3:.2g} ms"


def _remedy(setup: Setup) -> str:
    if setup.backend == "nccl":
        return (
            "run with NCCL_DEBUG=INFO to see where it stops; NCCL_P2P_DISABLE=1 tells whether the way between GPUs is "
            "at fault (then switch off ACS or the IOMMU); see shared memory"
        )
    return "see the lines on interfaces, GLOO_SOCKET_IFNAME and listening"
