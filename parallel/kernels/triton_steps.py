"""What a decoding step does besides its products, on a GPU: norms, and attention of one new token in each row.

Lengths are read on the GPU, so a captured step works at any of them. Meanings are those of `native.py`.

Shapes: B rows, n query heads, k KV heads, G queries of a KV head, S places at once, H numbers a head (h: half of
it), P parts that a row's places are dealt out to, D model width. Blocks are filled up to powers of two.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# Scores that a program works out at once, and the fewest places worth a program of their own.
_SCORES, _LEAST_AT_ONCE, _LEAST_PLACES = 32, 8, 64
# So many programs fill a GPU of the size that these models are run on.
_PROGRAMS = 528


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x += more, where there is more; then x / rms(x) * weight. All contiguous and of one dtype, [..., D]."""
    y = torch.empty_like(x)
    width = x.shape[-1]
    _add_norm[(x.numel() // width,)](
        x, x if more is None else more, weight, y, eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), ADDS=more is not None, num_warps=8,
    )  # fmt: skip
    return y


@triton.jit
def _add_norm(
    x: tl.tensor, more: tl.tensor, weight: tl.tensor, y: tl.tensor, eps: tl.tensor,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr,
) -> None:  # fmt: skip
    at_D = tl.arange(0, BLOCK)
    here_D = tl.program_id(0).to(tl.int64) * WIDTH + at_D
    inside = at_D < WIDTH
    x_D = tl.load(x + here_D, inside, 0)
    if ADDS:
        # Rounded as the sum is kept, so that the norm is that of the kept one.
        x_D = (x_D.to(tl.float32) + tl.load(more + here_D, inside, 0).to(tl.float32)).to(x_D.dtype)
        tl.store(x + here_D, x_D, inside)
    x_D = x_D.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_D * x_D, 0) / WIDTH + eps)
    weight_D = tl.load(weight + at_D, inside, 0).to(tl.float32)
    tl.store(y + here_D, (x_D * scale * weight_D).to(y.dtype.element_ty), inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """How many queries a KV head serves at most; and how many stand before those of each, and in all, on the GPU."""

    most: int
    firsts: Tensor


@lru_cache(maxsize=64)
def queries_on(device: torch.device, counts: tuple[int, ...]) -> Queries:
    """`counts`: how many queries each KV head serves."""
    firsts = [sum(counts[:head]) for head in range(len(counts) + 1)]
    return Queries(most=max(counts), firsts=torch.tensor(firsts, dtype=torch.int32, device=device))


def attend(
    qkv_BX: Tensor, keys_BkSH: Tensor, values_BkSH: Tensor, turns_Sh2: Tensor, places_B: Tensor, queries: Queries
) -> Tensor:
    """See attention.attend_step. Where rows and KV heads are few, several programs share the places of each."""
    rows, kv_heads, max_places, width = keys_BkSH.shape
    heads = qkv_BX.shape[-1] // width - 2 * kv_heads
    parts = max(1, min(_PROGRAMS // (rows * kv_heads), max_places // _LEAST_PLACES))
    group = triton.next_power_of_2(queries.most)
    half = triton.next_power_of_2(width // 2)
    # What each part found: its sum of values, the largest of its scores, and the sum of their exponentials.
    sums_BnPH = qkv_BX.new_empty((rows, heads, parts, width), dtype=torch.float32)
    marks_2BnP = qkv_BX.new_empty((2, rows, heads, parts), dtype=torch.float32)
    _attend[(parts, kv_heads, rows)](
        qkv_BX, keys_BkSH, values_BkSH, turns_Sh2, places_B, queries.firsts, sums_BnPH, *marks_2BnP, max_places,
        width**-0.5, HEADS=heads, KV_HEADS=kv_heads, H=width, HALF=half, G=group,
        S=max(_SCORES // group, _LEAST_AT_ONCE), PARTS=parts, num_warps=4,
    )  # fmt: skip
    out = qkv_BX.new_empty((rows, heads * width))
    _combine[(rows * heads,)](
        sums_BnPH, *marks_2BnP, out, PARTS=parts, P=triton.next_power_of_2(parts), H=width, BLOCK=2 * half, num_warps=1
    )
    return out


@triton.jit
def _attend(
    qkv: tl.tensor, keys: tl.tensor, values: tl.tensor, turns: tl.tensor, places: tl.tensor, firsts: tl.tensor,
    sums: tl.tensor, mosts: tl.tensor, totals: tl.tensor, max_places: tl.tensor, scale: tl.tensor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, G: tl.constexpr,
    S: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """One part of the places of one KV head of one row, with all of its queries. The last part brings the new token,
    which stands nowhere yet; the others read only what is there already, so nobody waits for its being written."""
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = tl.load(places + row)
    turns += place * H
    line = qkv + row * (HEADS + 2 * KV_HEADS) * H
    first, stop = tl.load(firsts + head), tl.load(firsts + head + 1)
    query_G = first + tl.arange(0, G)
    at_H = tl.arange(0, 2 * HALF)
    dtype = keys.dtype.element_ty
    q_G1H = _turned(line, query_G, query_G < stop, turns, H, HALF).to(dtype).to(tl.float32)[:, None, :] * scale
    one = tl.arange(0, 1)
    k_1H = _turned(line, HEADS + head + one, one == 0, turns, H, HALF).to(dtype)
    v_1H = tl.load(line + (HEADS + KV_HEADS + head) * H + at_H[None, :], at_H[None, :] < H, 0)
    cached = (row * KV_HEADS + head).to(tl.int64) * max_places * H
    brings = part == PARTS - 1
    here_1H = cached + place * H + at_H[None, :]
    tl.store(keys + here_1H, k_1H, (at_H[None, :] < H) & brings)
    tl.store(values + here_1H, v_1H, (at_H[None, :] < H) & brings)

    # Each of the S places at once keeps a maximum and sums of its own: they meet only at the end. The new token is the
    # first that place 0 of them sees.
    news_1S = (tl.arange(0, S)[None, :] == 0) & brings
    scores_G1 = tl.sum(q_G1H * k_1H.to(tl.float32)[None, :, :], 2)
    most_GS = tl.where(news_1S, scores_G1, float("-inf"))
    total_GS = tl.where(news_1S, 1.0, tl.zeros((G, S), tl.float32))
    sum_GSH = total_GS[:, :, None] * v_1H.to(tl.float32)[None, :, :]
    share = tl.cdiv(tl.cdiv(place, PARTS), S) * S
    start, end = part * share, tl.minimum((part + 1) * share, place)
    while start < end:
        at_1S1 = (start + tl.arange(0, S))[None, :, None]
        here_1SH = cached + at_1S1 * H + at_H[None, None, :]
        inside_1SH = (at_1S1 < end) & (at_H[None, None, :] < H)
        k_1SH = tl.load(keys + here_1SH, inside_1SH, 0).to(tl.float32)
        v_1SH = tl.load(values + here_1SH, inside_1SH, 0).to(tl.float32)
        scores_GS = tl.sum(q_G1H * k_1SH, 2)
        seen_1S = (start + tl.arange(0, S))[None, :] < end
        new_GS = tl.maximum(most_GS, tl.where(seen_1S, scores_GS, most_GS))
        # A place that has seen nothing yet has no maximum to subtract.
        base_GS = tl.where(new_GS == float("-inf"), 0.0, new_GS)
        fade_GS = tl.exp(most_GS - base_GS)
        gain_GS = tl.where(seen_1S, tl.exp(scores_GS - base_GS), 0.0)
        total_GS = total_GS * fade_GS + gain_GS
        sum_GSH = sum_GSH * fade_GS[:, :, None] + gain_GS[:, :, None] * v_1SH
        most_GS = new_GS
        start += S
    most_G = tl.max(most_GS, 1)
    base_G = tl.where(most_G == float("-inf"), 0.0, most_G)
    weight_GS = tl.exp(most_GS - base_G[:, None])
    mark_G = (row * HEADS + query_G) * PARTS + part
    tl.store(mosts + mark_G, most_G, query_G < stop)
    tl.store(totals + mark_G, tl.sum(total_GS * weight_GS, 1), query_G < stop)
    inside_GH = (query_G < stop)[:, None] & (at_H < H)[None, :]
    tl.store(sums + mark_G[:, None] * H + at_H[None, :], tl.sum(sum_GSH * weight_GS[:, :, None], 1), inside_GH)


@triton.jit
def _turned(
    line: tl.tensor, head_G: tl.tensor, inside_G: tl.tensor, turns: tl.tensor, H: tl.constexpr, HALF: tl.constexpr
) -> tl.tensor:
    """Heads [G, H] turned by the angles of their place: neighbours together (arXiv:2104.09864, in Meta's layout)."""
    at_1h = tl.arange(0, HALF)[None, :] * 2
    inside_Gh = inside_G[:, None] & (at_1h < H)
    here_Gh = line + head_G[:, None] * H + at_1h
    x_Gh = tl.load(here_Gh, inside_Gh, 0).to(tl.float32)
    y_Gh = tl.load(here_Gh + 1, inside_Gh, 0).to(tl.float32)
    cosine_1h = tl.load(turns + at_1h, at_1h < H, 0)
    sine_1h = tl.load(turns + at_1h + 1, at_1h < H, 0)
    return tl.interleave(x_Gh * cosine_1h - y_Gh * sine_1h, x_Gh * sine_1h + y_Gh * cosine_1h)


@triton.jit
def _combine(
    sums: tl.tensor, mosts: tl.tensor, totals: tl.tensor, out: tl.tensor,
    PARTS: tl.constexpr, P: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """What all parts of one query found, as one."""
    query = tl.program_id(0).to(tl.int64)
    part_P, at_H = tl.arange(0, P), tl.arange(0, BLOCK)
    most_P = tl.load(mosts + query * PARTS + part_P, part_P < PARTS, float("-inf"))
    # The part with the new token has a maximum.
    weight_P = tl.exp(most_P - tl.max(most_P, 0))
    total = tl.sum(weight_P * tl.load(totals + query * PARTS + part_P, part_P < PARTS, 0.0), 0)
    here_PH = (query * PARTS + part_P[:, None]) * H + at_H[None, :]
    sums_PH = tl.load(sums + here_PH, (part_P[:, None] < PARTS) & (at_H[None, :] < H), 0.0)
    found_H = tl.sum(sums_PH * weight_P[:, None], 0) / total
    tl.store(out + query * H + at_H, found_H.to(out.dtype.element_ty), at_H < H)
