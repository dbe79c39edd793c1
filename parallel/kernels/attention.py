"""Attention of one new token in each row over a KV cache: turning, remembering and attending in one pass."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from parallel.kernels import gpu, native


def can_step(x: Tensor, rows: int) -> bool:
    """Whether `attend_step` can work on such rows here."""
    return native.usable(x, rows) or gpu.usable(x, rows)


def attend_step(
    qkv_BX: Tensor,
    keys_BkSH: Tensor,
    values_BkSH: Tensor,
    turns_Sh: Tensor,
    places_B: Tensor,
    queries: Sequence[int],
) -> Tensor:
    """What one new token in each row takes from those before it and from itself: [B, n * H]. Where `can_step`.

    `qkv_BX`: its queries (n heads), key and value (k heads each) side by side, [B, (n + 2k) * H], not yet turned. They
    are turned by `turns_Sh` (complex, [positions, H / 2]) at `places_B`, and key and value are written there.
    `queries`: how many queries each KV head serves. Needs no communication.
    """
    turns_Sh2 = torch.view_as_real(turns_Sh)
    if qkv_BX.is_cuda:
        return gpu.attend(qkv_BX, keys_BkSH, values_BkSH, turns_Sh2, places_B, tuple(queries))
    return native.attend(qkv_BX, keys_BkSH, values_BkSH, turns_Sh2, places_B, _native_queries(tuple(queries)))


@lru_cache(maxsize=64)
def _native_queries(queries: tuple[int, ...]) -> native.Queries:
    return native.Queries(queries)
