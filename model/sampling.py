"""From logits to one token a row: temperature, top-p, and random numbers that depend on nothing but
(seed, prompt, step)."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Below this a softmax is one-hot in float32 for any two logits that differ.
GREEDY_BELOW = 1e-5


def uniform(seed: int, prompt: int, step: int) -> float:
    """The number in [0, 1) that prompt `prompt` draws at `step`: the same in any batch, order and MP, and
    after a resume."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def filter_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Zero what is outside the smallest set of likeliest tokens with a mass of `top_p`, at least one token.

    probs: [..., V] sorted from the likeliest. A token stays while the mass before it is below `top_p`
    (transformers' TopPLogitsWarper, on the descending order).
    """
    before = probs.cumsum(-1) - probs
    drop = before >= top_p
    drop[..., 0] = False
    return probs.masked_fill(drop, 0)


def sample_top_p(probs: Tensor, p: float) -> Tensor:
    """One id [B, 1] drawn by torch's generator from the nucleus of `probs` [B, V] (llama `generation.py`).

    As Meta's: a token stays while the mass before it does not exceed `p`, so p = 0 keeps the likeliest.
    """
    sorted_probs, ids = torch.sort(probs, dim=-1, descending=True)
    before = sorted_probs.cumsum(-1) - sorted_probs
    kept = sorted_probs.masked_fill(before > p, 0)
    drawn = torch.multinomial(kept / kept.sum(-1, keepdim=True), num_samples=1)
    return ids.gather(-1, drawn)


def choose(logits: Tensor, temperature: float, top_p: float, draws: Sequence[float]) -> Tensor:
    """One id a row [B] of `logits` [B, V]; `draws` are the rows' numbers in [0, 1)."""
    if temperature < GREEDY_BELOW:
        return logits.argmax(-1)
    sorted_probs, ids = torch.sort(torch.softmax(logits / temperature, -1), dim=-1, descending=True, stable=True)
    if top_p < 1:
        sorted_probs = filter_top_p(sorted_probs, top_p)
    edges = sorted_probs.double().cumsum(-1)
    marks = torch.tensor(draws, dtype=torch.float64, device=logits.device).unsqueeze(-1) * edges[..., -1:]
    # The first token whose upper edge is above the mark; a token of mass 0 has none above.
    place = torch.searchsorted(edges, marks, right=True).clamp(max=ids.shape[-1] - 1)
    return ids.gather(-1, place).squeeze(-1)
