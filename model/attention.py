"""Grouped-query attention (arXiv:2305.13245) with its heads cut over the ranks.

Shapes: a capital is the full size, its small letter this rank's share.
B rows, T new tokens, S tokens seen, D model width, N/n query heads, K/k KV heads, H numbers a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import KVCache
from model.params import Params
from model.rope import Turns, rotate
from model.split import split_of
from parallel import ColumnParallelLinear, Mesh, RowParallelLinear
from parallel.kernels.attention import attend_step, can_step
from parallel.kernels.gradients import wanted
from parallel.linear import column_products


class Attention(nn.Module):
    """Causal self-attention of one layer. Forward is collective (wo's all-reduce).

    A KV head that stands on several ranks gets on each only the gradient of the queries there; whoever
    trains at an MP above n_kv_heads must add them up.
    """

    def __init__(self, params: Params, layer: int, mesh: Mesh) -> None:
        super().__init__()
        self.layer = layer
        split, width = split_of(params, mesh.size), params.head_dim
        self.local_heads = split.heads[mesh.rank].size
        self.local_kv_heads = split.kv_heads[mesh.rank].size
        self.queries = split.queries[mesh.rank]
        heads = [own * width for own in split.heads]
        kv_heads = [own * width for own in split.kv_heads]
        dim, kv_dim = params.dim, params.n_kv_heads * width
        self.wq = ColumnParallelLinear(dim, dim, bias=False, gather_output=False, mesh=mesh, shares=heads)
        self.wk = ColumnParallelLinear(dim, kv_dim, bias=False, gather_output=False, mesh=mesh, shares=kv_heads)
        self.wv = ColumnParallelLinear(dim, kv_dim, bias=False, gather_output=False, mesh=mesh, shares=kv_heads)
        self.wo = RowParallelLinear(dim, dim, bias=False, input_is_parallel=True, mesh=mesh, shares=heads)

    def forward(self, x_BTD: Tensor, turns: Turns, cache: KVCache | None) -> Tensor:
        if cache is not None and cache.stepping and self._can_step(x_BTD):
            return self.wo(self._step(x_BTD, turns, cache))  # type: ignore[no-any-return]
        q_BTnH = rotate(self.wq(x_BTD).unflatten(-1, (self.local_heads, -1)), turns.here_BTh)
        k_BTkH = rotate(self.wk(x_BTD).unflatten(-1, (self.local_kv_heads, -1)), turns.here_BTh)
        v_BTkH = self.wv(x_BTD).unflatten(-1, (self.local_kv_heads, -1))
        if cache is None:
            k_BkSH, v_BkSH = k_BTkH.transpose(1, 2), v_BTkH.transpose(1, 2)
        else:
            k_BkSH, v_BkSH = cache.extend(self.layer, k_BTkH, v_BTkH)
        k_BkSH, v_BkSH = one_for_each_query(k_BkSH, self.queries), one_for_each_query(v_BkSH, self.queries)
        y_BTnH = attend(q_BTnH, k_BkSH, v_BkSH, cache)
        return self.wo(y_BTnH.flatten(-2))  # type: ignore[no-any-return]

    def _can_step(self, x_B1D: Tensor) -> bool:
        return can_step(x_B1D, len(x_B1D)) and not wanted(self.wq.weight, self.wk.weight, self.wv.weight)

    def _step(self, x_B1D: Tensor, turns: Turns, cache: KVCache) -> Tensor:
        """The same for one new token in each row, in two kernels: [B, 1, n * H], before wo."""
        qkv_BX = column_products(x_B1D, (self.wq, self.wk, self.wv)).squeeze(1)
        keys_BkSH, values_BkSH = cache.layer(self.layer)
        y_BX = attend_step(qkv_BX, keys_BkSH, values_BkSH, turns.table_Sh, cache.step_places_B, self.queries)
        return y_BX.unsqueeze(1)


def one_for_each_query(x_BkSH: Tensor, queries: Sequence[int]) -> Tensor:
    """Keys or values as queries use them: as they are where each serves as many (`queries`), else one for each."""
    if len(set(queries)) == 1:
        return x_BkSH
    return torch.cat([x_BkSH[:, k : k + 1].expand(-1, count, -1, -1) for k, count in enumerate(queries)], 1)


def attend(q_BTnH: Tensor, k_BkSH: Tensor, v_BkSH: Tensor, cache: KVCache | None) -> Tensor:
    """What each new token takes from those that it may see [B, T, n, H]; without a cache from those before it."""
    mask_B1TS, causal = (None, True) if cache is None else (cache.mask_B1TS, cache.fresh)
    if q_BTnH.shape[1] == 1:
        # One new token sees everything before it, so the queries of a KV head can stand where a
        # sequence would, and no key or value is repeated for them.
        rows, kv_heads, head_dim = q_BTnH.shape[0], k_BkSH.shape[1], q_BTnH.shape[3]
        q_BkgH = q_BTnH.reshape(rows, kv_heads, -1, head_dim)
        y_BkgH = F.scaled_dot_product_attention(q_BkgH, k_BkSH, v_BkSH, attn_mask=mask_B1TS)
        return y_BkgH.flatten(1, 2).unsqueeze(1)
    grouped = q_BTnH.shape[2] != k_BkSH.shape[1]
    y_BnTH = F.scaled_dot_product_attention(
        q_BTnH.transpose(1, 2), k_BkSH, v_BkSH, attn_mask=mask_B1TS, is_causal=causal, enable_gqa=grouped
    )
    return y_BnTH.transpose(1, 2)
