"""The KV cache of one request: what attention remembers of the tokens before."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from model.params import Params
from model.split import split_of
from parallel.mesh import Mesh


def cache_shape(params: Params, mesh: Mesh, batch: int, max_tokens: int) -> tuple[int, int, int, int]:
    """One layer's keys, or values, on this rank: [batch, k, max_tokens, head_dim]."""
    return batch, split_of(params, mesh.size).kv_heads[mesh.rank].size, max_tokens, params.head_dim


def cache_bytes(params: Params, mesh: Mesh, batch: int, max_tokens: int, dtype: torch.dtype) -> int:
    """What a KVCache of this size takes on this rank."""
    return 2 * params.n_layers * prod(cache_shape(params, mesh, batch, max_tokens)) * dtype.itemsize


class KVCache:
    """Keys and values of `batch` rows, up to `max_tokens` each, for this rank's KV heads.

    `lengths` says how many tokens each row holds. A forward pass writes its tokens behind them and
    leaves `lengths` as they are; `advance` takes the written tokens in.
    """

    def __init__(
        self, params: Params, mesh: Mesh, batch: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = cache_shape(params, mesh, batch, max_tokens)
        # Zeros, not garbage: a masked position is multiplied by 0, and 0 * NaN is NaN.
        self.keys_LBkSH = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(params.n_layers)]
        self.values_LBkSH = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(params.n_layers)]
        self.max_tokens = max_tokens
        self.device = device
        self.lengths = [0] * batch
        self.plan(0)

    def plan(self, new_tokens: int) -> None:
        """Prepare what all layers share for a pass over `new_tokens` tokens in each row."""
        self.new_tokens = new_tokens
        self.window = max(self.lengths) + new_tokens
        self.even = len(set(self.lengths)) == 1
        self.fresh = self.window == new_tokens
        steps_T = torch.arange(new_tokens, device=self.device)
        if self.even:
            self.positions_BT = (steps_T + self.lengths[0]).unsqueeze(0)
        else:
            self.positions_BT = torch.tensor(self.lengths, device=self.device).unsqueeze(1) + steps_T
        self.mask_B1TS: Tensor | None = None
        if not self.fresh and not (self.even and new_tokens == 1):
            seen_S = torch.arange(self.window, device=self.device)
            self.mask_B1TS = (seen_S <= self.positions_BT.unsqueeze(-1)).unsqueeze(1)

    def extend(self, layer: int, k_BTkH: Tensor, v_BTkH: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values; return all that it sees, [B, k, window, H]."""
        keys, values = self.keys_LBkSH[layer], self.values_LBkSH[layer]
        if self.even:
            start = self.window - self.new_tokens
            keys[:, :, start : self.window] = k_BTkH.transpose(1, 2)
            values[:, :, start : self.window] = v_BTkH.transpose(1, 2)
        else:
            rows_B1 = torch.arange(len(self.lengths), device=self.device).unsqueeze(1)
            keys[rows_B1, :, self.positions_BT] = k_BTkH
            values[rows_B1, :, self.positions_BT] = v_BTkH
        return keys[:, :, : self.window], values[:, :, : self.window]

    def advance(self, tokens: Sequence[int]) -> None:
        """Row i now holds `tokens[i]` more tokens. Padding behind a shorter row is overwritten later."""
        self.lengths = [held + more for held, more in zip(self.lengths, tokens, strict=True)]
