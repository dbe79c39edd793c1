"""From scores to one token a row: draws that follow the probabilities, and random numbers that depend on nothing but
(seed, prompt, step, sequence)."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from model.generation.processors import ascending


def uniform(seed: int, prompt: int, step: int, sequence: int = 0) -> float:
    """The number in [0, 1) that answer `sequence` to prompt `prompt` draws at `step`: the same in any batch, order
    and MP, and after a resume."""
    # The first answer's numbers are those that a prompt with only one answer draws.
    words = (seed, prompt, step, sequence) if sequence else (seed, prompt, step)
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(scores_BV: Tensor, draws: Sequence[float]) -> Tensor:
    """One id a row [B], by the softmax of `scores_BV`; `draws` are the rows' numbers in [0, 1).

    Tokens stand from the likeliest, and equals in the order of their ids; a row's number says how much of the mass
    lies before the token that is drawn. Every row needs a score above -inf, and none that is NaN or inf.
    """
    probs_BV = scores_BV.softmax(-1)
    places_B1, drawn_B1 = _places(probs_BV, draws)
    # Of the tokens with the drawn probability it is the one with as many before it as the place has.
    likelier_B1 = (probs_BV > drawn_B1).sum(-1, keepdim=True)
    counts_BV = (probs_BV == drawn_B1).cumsum(-1, dtype=torch.int32)
    return torch.searchsorted(counts_BV, (places_B1 - likelier_B1 + 1).int()).squeeze(-1)


def _places(probs_BV: Tensor, draws: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Where each row's number falls among its tokens from the likeliest, and the probability there, [B, 1] each."""
    sorted_BV = ascending(probs_BV).flip(-1)
    edges_BV = sorted_BV.cumsum(-1, dtype=torch.float64)
    marks_B1 = torch.tensor(draws, dtype=torch.float64, device=probs_BV.device).unsqueeze(-1) * edges_BV[:, -1:]
    # The first token whose upper edge is above the mark; a token of mass 0 has none above.
    # Where numbers are not finite there is none, but a place all the same: the decoder tells of it.
    places_B1 = torch.searchsorted(edges_BV, marks_B1, right=True).clamp_max(probs_BV.shape[-1] - 1)
    return places_B1, sorted_BV.gather(-1, places_B1)


def sample_top_p(probs: Tensor, p: float) -> Tensor:
    """One id [B, 1] drawn by torch's generator from the nucleus of `probs` [B, V] (llama `generation.py`).

    As Meta's: a token stays while the mass before it does not exceed `p`, so p = 0 keeps the likeliest.
    """
    sorted_probs, ids = torch.sort(probs, dim=-1, descending=True)
    before = sorted_probs.cumsum(-1) - sorted_probs
    kept = sorted_probs.masked_fill(before > p, 0)
    drawn = torch.multinomial(kept / kept.sum(-1, keepdim=True), num_samples=1)
    return ids.gather(-1, drawn)
