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

    They stand in one place a layer, or in `units` places with as many heads each (the exact mode); `extend` counts
    places. The memory is the same.

    `lengths` says how many tokens each row holds. A forward pass writes its tokens behind them and
    leaves `lengths` as they are; `advance` takes the written tokens in.
    """

    def __init__(
        self,
        params: Params,
        mesh: Mesh,
        batch: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        units: int = 1,
    ) -> None:
        _, heads, _, head_dim = cache_shape(params, mesh, batch, max_tokens)
        shape, places = (batch, heads // units, max_tokens, head_dim), params.n_layers * units
        # Zeros, not garbage: a masked position is multiplied by 0, and 0 * NaN is NaN.
        self.keys_LBkSH = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(places)]
        self.values_LBkSH = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(places)]
        self.max_tokens = max_tokens
        self.device = device
        self.lengths = [0] * batch
        # Another object whenever the tensors are others: whoever remembers where they stand looks at it.
        self.memory = object()
        # Where a step writes: of each row the place behind its tokens. Always in the same memory.
        self.step_places_B = torch.zeros(batch, dtype=torch.long, device=device)
        self.plan(0)

    def plan(self, new_tokens: int, rivals: bool = False) -> None:
        """Prepare what all layers share for a pass over `new_tokens` tokens in each row.

        `rivals`: they do not follow one another but compete for the same place. Each sees what the row holds,
        and itself; `keep` then takes one of them in.
        """
        self.new_tokens = new_tokens
        # One token in each row, behind all that the row holds.
        self.stepping = new_tokens == 1 and not rivals
        if self.stepping:
            self.step_places_B.copy_(torch.tensor(self.lengths))
        self.window = max(self.lengths) + new_tokens
        # Kernels write there without looking.
        assert self.window <= self.max_tokens, f"{self.window} tokens in a cache of {self.max_tokens}"
        self.even = len(set(self.lengths)) == 1
        self.fresh = self.window == new_tokens
        held_B1 = torch.tensor(self.lengths[:1] if self.even else self.lengths, device=self.device).unsqueeze(1)
        # Where each token is written; its rotary position is the same, but that rivals share one.
        self.places_BT = held_B1 + torch.arange(new_tokens, device=self.device)
        self.positions_BT = held_B1.expand(-1, new_tokens) if rivals else self.places_BT
        self.mask_B1TS: Tensor | None = None
        if rivals or (not self.fresh and not (self.even and new_tokens == 1)):
            seen_S = torch.arange(self.window, device=self.device)
            places_BT1 = self.places_BT.unsqueeze(-1)
            seen_BTS = (seen_S < held_B1.unsqueeze(-1)) | (seen_S == places_BT1) if rivals else seen_S <= places_BT1
            self.mask_B1TS = seen_BTS.unsqueeze(1)

    def extend(self, place: int, k_BTkH: Tensor, v_BTkH: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's (or a unit's) new keys and values; return all that it sees, [B, k, window, H]."""
        keys, values = self.keys_LBkSH[place], self.values_LBkSH[place]
        if self.even:
            start = self.window - self.new_tokens
            keys[:, :, start : self.window] = k_BTkH.transpose(1, 2)
            values[:, :, start : self.window] = v_BTkH.transpose(1, 2)
        else:
            rows_B1 = torch.arange(len(self.lengths), device=self.device).unsqueeze(1)
            keys[rows_B1, :, self.places_BT] = k_BTkH
            values[rows_B1, :, self.places_BT] = v_BTkH
        return keys[:, :, : self.window], values[:, :, : self.window]

    def layer(self, place: int) -> tuple[Tensor, Tensor]:
        """All places of a layer's keys and values [B, k, S, H], for whoever writes them at `step_places_B`."""
        return self.keys_LBkSH[place], self.values_LBkSH[place]

    def advance(self, tokens: Sequence[int]) -> None:
        """Row i now holds `tokens[i]` more tokens. Padding behind a shorter row is overwritten later."""
        self.lengths = [held + more for held, more in zip(self.lengths, tokens, strict=True)]

    def keep(self, chosen: Sequence[int]) -> None:
        """Of each row's rivals, written by the pass just made, put the chosen one where the first stands."""
        rows_B = torch.arange(len(self.lengths), device=self.device)
        held_B = torch.tensor(self.lengths, device=self.device)
        from_B = held_B + torch.tensor(chosen, device=self.device)
        for x_BkSH in (*self.keys_LBkSH, *self.values_LBkSH):
            x_BkSH[rows_B, :, held_B] = x_BkSH[rows_B, :, from_B]

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; there may be more or fewer rows than before.

        Needs no communication: each rank does so with its own heads.
        """
        moved = [row for row, source in enumerate(rows) if row != source]
        if not moved and len(rows) == len(self.lengths):
            return
        filled = max(self.lengths)
        sources = torch.tensor(rows, device=self.device)
        moved_M = torch.tensor(moved, dtype=torch.long, device=self.device)
        for tensors in (self.keys_LBkSH, self.values_LBkSH):
            for layer, x_BkSH in enumerate(tensors):
                if len(rows) == len(self.lengths):
                    x_BkSH[moved_M, :, :filled] = x_BkSH[sources[moved_M], :, :filled]
                else:
                    tensors[layer] = x_BkSH[sources]
        if len(rows) != len(self.lengths):
            self.memory = object()
            self.step_places_B = torch.zeros(len(rows), dtype=torch.long, device=self.device)
        self.lengths = [self.lengths[source] for source in rows]
