"""What is done to the scores of the next token before one is taken: small pieces of one shape, applied in turn.

Each keeps what transformers' processor of that name keeps, ties and rounding included. Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# From the ids of each row so far, prompt and answer, and scores [B, V] to scores [B, V]. A token that is dropped
# gets -inf. What comes in is never changed.
Processor = Callable[[Sequence[Sequence[int]], Tensor], Tensor]


def process(processors: Iterable[Processor], ids: Sequence[Sequence[int]], scores_BV: Tensor) -> Tensor:
    """The scores [B, V] after all of `processors`, one behind the other."""
    for processor in processors:
        scores_BV = processor(ids, scores_BV)
    return scores_BV


def processors_of(
    *,
    repetition_penalty: float,
    sampling: bool,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[Processor]:
    """What these settings ask for, in transformers' order, without what would do nothing.

    Without `sampling` (greedy decoding and searches) only the repetition penalty is left, as in transformers.
    """
    asked: list[tuple[bool, Processor]] = [
        (repetition_penalty != 1, RepetitionPenalty(repetition_penalty)),
        (sampling and temperature != 1, Temperature(temperature)),
        (sampling and top_k > 0, TopK(top_k)),
        (sampling and top_p < 1, TopP(top_p)),
        (sampling and min_p > 0, MinP(min_p)),
    ]
    return [processor for wanted, processor in asked if wanted]


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Divides the positive scores of tokens that stand in the row already, multiplies the negative ones.

    Once a token, however often it stands there (CTRL, arXiv:1909.05858, section 4.1).
    """

    penalty: float

    def __call__(self, ids: Sequence[Sequence[int]], scores_BV: Tensor) -> Tensor:
        penalised_BV = scores_BV.clone()
        for row_V, row_ids in zip(penalised_BV, ids, strict=True):
            seen = torch.tensor(row_ids, dtype=torch.long, device=scores_BV.device)
            scores = row_V[seen]
            scores = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
            # A penalty close to 0 may overflow, and one infinite score makes every probability NaN.
            row_V[seen] = scores.clamp(max=torch.finfo(scores.dtype).max)
        return penalised_BV


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divides all scores: below 1 likely tokens become likelier, above 1 less likely."""

    temperature: float

    def __call__(self, _ids: Sequence[Sequence[int]], scores_BV: Tensor) -> Tensor:
        scaled_BV = scores_BV / self.temperature
        fits_B1 = scaled_BV.amax(-1, keepdim=True).isfinite()
        if bool(fits_B1.all()):
            return scaled_BV
        # The largest score has overflowed. To subtract it first changes no probability.
        shifted_BV = (scores_BV - scores_BV.amax(-1, keepdim=True)) / self.temperature
        return torch.where(fits_B1, scaled_BV, shifted_BV)


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the `k` highest scores, and what equals the last of them."""

    k: int

    def __call__(self, _ids: Sequence[Sequence[int]], scores_BV: Tensor) -> Tensor:
        least_B1 = scores_BV.topk(min(self.k, scores_BV.shape[-1])).values[:, -1:]
        return _without(scores_BV < least_B1, scores_BV)


@dataclass(frozen=True, slots=True)
class TopP:
    """Keeps the fewest likeliest tokens with a mass of `p`, at least one (arXiv:1904.09751).

    Counted from the least likely: a token goes while its mass and that of all before it do not exceed 1 - p.
    """

    p: float

    def __call__(self, _ids: Sequence[Sequence[int]], scores_BV: Tensor) -> Tensor:
        last = scores_BV.shape[-1] - 1
        ascending_BV = ascending(scores_BV)
        # Probabilities of the sorted row, not sorted probabilities: their sum is rounded in another order, and
        # transformers' is this one.
        masses_BV = ascending_BV.softmax(-1).cumsum(-1)
        dropped_B1 = (masses_BV <= 1 - self.p).sum(-1, keepdim=True).clamp(max=last)
        least_B1 = ascending_BV.gather(-1, dropped_B1)
        drop_BV = scores_BV < least_B1
        tied_B = (drop_BV.sum(-1, keepdim=True) < dropped_B1).squeeze(-1)
        if bool(tied_B.any()):
            # Some of several equal tokens go and some stay: which, transformers leaves to torch.sort.
            order = scores_BV[tied_B].sort(-1).indices
            places = torch.arange(last + 1, device=order.device)
            drop_BV[tied_B] = drop_BV[tied_B].scatter(-1, order, places < dropped_B1[tied_B])
        return _without(drop_BV, scores_BV)


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps what is at least `p` times as likely as the likeliest token (arXiv:2407.01082)."""

    p: float

    def __call__(self, _ids: Sequence[Sequence[int]], scores_BV: Tensor) -> Tensor:
        probs_BV = scores_BV.softmax(-1)
        return _without(probs_BV < self.p * probs_BV.amax(-1, keepdim=True), scores_BV)


def ascending(values_BV: Tensor) -> Tensor:
    """Each row sorted. On a CPU by numpy: torch.sort finds the ids too, and takes forty times as long."""
    if values_BV.device.type != "cpu":
        return values_BV.sort(-1).values
    return torch.from_numpy(np.sort(values_BV.numpy(), axis=-1))


def _without(drop_BV: Tensor, scores_BV: Tensor) -> Tensor:
    return scores_BV.masked_fill(drop_BV, -math.inf)
