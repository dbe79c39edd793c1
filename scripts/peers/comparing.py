"""From runs in turns to a table and ratios. A ratio is taken within a turn: what slows the machine then slows both."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from peers.running import Measured, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Over the turns."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(median=statistics.median(values), low=min(values), high=max(values))

    def text(self, digits: str = "") -> str:
        """`digits`: how numbers are formatted; '': three digits, or as many as are before the point."""
        digits = digits or (".0f" if self.low >= 100 else ".3g")
        return f"{self.median:{digits}} ({self.low:{digits}} to {self.high:{digits}})"


Turns = Mapping[str, Sequence[Measured]]
_HEAD = ("", "weights", "decode, tokens/s", "step, ms", "prefill, tokens/s", "first token, ms", "tokens alike")
_RATES: dict[str, Callable[[Measured], float]] = {
    "decode": lambda run: run.decode_tokens_per_s,
    "prefill": lambda run: run.prefill_tokens_per_s,
}


def spreads(runs: Sequence[Measured]) -> dict[str, Spread]:
    """Rates and times of a runner; higher rates are better, lower times."""
    return {
        "decode_tokens_per_s": Spread.of([run.decode_tokens_per_s for run in runs]),
        "prefill_tokens_per_s": Spread.of([run.prefill_tokens_per_s for run in runs]),
        "first_token_s": Spread.of([run.first_token_s for run in runs]),
        "step_s": Spread.of([run.step_s[0] for run in runs]),
        "load_s": Spread.of([run.load_s for run in runs]),
    }


def table(runners: Sequence[Runner], turns: Turns) -> list[str]:
    """A line for each runner, as Markdown."""
    reference = turns[runners[0].name][0].tokens
    rows = [_HEAD, tuple("---" for _ in _HEAD)]
    for runner in runners:
        runs = turns[runner.name]
        found = spreads(runs)
        milliseconds = (found["step_s"].median * 1e3, found["first_token_s"].median * 1e3)
        alike = alike_tokens(reference, runs[0].tokens)
        rows.append(
            (
                runner.name,
                runner.weights,
                found["decode_tokens_per_s"].text(),
                f"{milliseconds[0]:.2f}",
                found["prefill_tokens_per_s"].text(),
                f"{milliseconds[1]:.0f}",
                f"{alike} of {len(reference)}",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def alike_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens agree from the start. Numbers of 16 bits part sooner or later; weights read wrongly, at once."""
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))


def ratios(runners: Sequence[Runner], turns: Turns) -> list[dict[str, object]]:
    """Ours to each peer's rates, for each of our MP sizes."""
    ours = [runner for runner in runners if runner.engine == "shardrun"]
    peers = [runner for runner in runners if runner.engine != "shardrun"]
    return [
        {
            "ours": own.name,
            "our_weights": own.weights,
            "peer": peer.name,
            "peer_weights": peer.weights,
            **{what: asdict(ratio(turns[own.name], turns[peer.name], what)) for what in _RATES},
        }
        for own in ours
        for peer in peers
    ]


def ratio(ours: Sequence[Measured], theirs: Sequence[Measured], what: str) -> Spread:
    """Of `decode` or `prefill` rates, turn by turn."""
    rate = _RATES[what]
    return Spread.of([rate(one) / rate(other) for one, other in zip(ours, theirs, strict=True)])


def ratio_lines(found: Sequence[Mapping[str, object]]) -> list[str]:
    """Ratios for people; above 1 we are ahead."""
    lines = []
    for each in found:
        parts = [f"{what} {Spread(**each[what]).text('.2f')}" for what in _RATES]  # type: ignore[arg-type]
        lines.append(f"{each['ours']} / {each['peer']} ({each['peer_weights']}): {', '.join(parts)}")
    return lines
