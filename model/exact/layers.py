"""The cut layers of the exact mode, block by block.

A library of kernels may add up in another order for another number of rows or columns, another stride or another
alignment. So each product is one of a block, alike at every MP, and ranks only differ in how many blocks they hold.

Shapes: B rows, T new tokens, S tokens seen, D model width, n query heads of a block, k KV heads of a unit or of a
block, H numbers a head.
"""

from collections.abc import Iterator, Mapping
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend, one_for_each_query
from model.cache import KVCache
from model.exact.blocks import blocks_of
from model.params import Params
from model.rope import Turns, rotate
from parallel import Mesh
from parallel.collectives import all_gather_first_dim

# A unit's keys and values, [B, k, S, H] each.
KeysAndValues = tuple[Tensor, Tensor]


class BlockLinear(nn.Module):
    """A matrix as blocks of [out, in], each a tensor of its own: `weight` holds this rank's by number."""

    def __init__(self, in_features: int, out_features: int, numbers: range) -> None:
        super().__init__()
        self.numbers = numbers
        self.weight = nn.ParameterDict({str(number): torch.empty(out_features, in_features) for number in numbers})

    def block(self, x: Tensor, number: int) -> Tensor:
        """[..., in] to [..., out] by one block."""
        return F.linear(x, self.weight[str(number)])

    def forward(self, x: Tensor) -> Tensor:
        """By all blocks, side by side on the last dimension."""
        return torch.cat([self.block(x, number) for number in self.numbers], -1)


class ExactAttention(nn.Module):
    """As Attention; keys and values unit by unit, queries and their sums block by block. Forward is collective."""

    def __init__(self, params: Params, layer: int, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh
        self.blocks = blocks_of(params, mesh.rank, mesh.size)
        self.first_place = layer * len(self.blocks.own_units)
        self.block_heads, self.unit_heads = self.blocks.finest.heads[0].size, self.blocks.unit_heads[0].size
        dim, width, kv_width = params.dim, self.block_heads * params.head_dim, self.unit_heads * params.head_dim
        self.wq = BlockLinear(dim, width, self.blocks.own)
        self.wk = BlockLinear(dim, kv_width, self.blocks.own_units)
        self.wv = BlockLinear(dim, kv_width, self.blocks.own_units)
        self.wo = BlockLinear(width, dim, self.blocks.own)

    def forward(self, x_BTD: Tensor, turns: Turns, cache: KVCache | None) -> Tensor:
        turns_BTh = turns.here_BTh
        units = {unit: self._keys_and_values(unit, x_BTD, turns_BTh, cache) for unit in self.blocks.own_units}
        parts = (self._block(number, x_BTD, turns_BTh, units, cache) for number in self.blocks.own)
        return sum_of_blocks(parts, len(self.blocks.own), self.mesh).type_as(x_BTD)

    def _keys_and_values(self, unit: int, x_BTD: Tensor, turns_BTh: Tensor, cache: KVCache | None) -> KeysAndValues:
        k_BTkH = rotate(_heads(self.wk.block(x_BTD, unit), self.unit_heads), turns_BTh)
        v_BTkH = _heads(self.wv.block(x_BTD, unit), self.unit_heads)
        if cache is None:
            return k_BTkH.transpose(1, 2), v_BTkH.transpose(1, 2)
        # One place in the cache for each unit, so that strides are those of a unit.
        return cache.extend(self.first_place + unit - self.blocks.own_units.start, k_BTkH, v_BTkH)

    def _block(
        self,
        number: int,
        x_BTD: Tensor,
        turns_BTh: Tensor,
        units: Mapping[int, KeysAndValues],
        cache: KVCache | None,
    ) -> Tensor:
        q_BTnH = rotate(_heads(self.wq.block(x_BTD, number), self.block_heads), turns_BTh)
        k_BkSH, v_BkSH = self._seen_by(number, units)
        y_BTnH = attend(q_BTnH, k_BkSH, v_BkSH, cache)
        return self.wo.block(y_BTnH.flatten(-2), number)

    def _seen_by(self, number: int, units: Mapping[int, KeysAndValues]) -> KeysAndValues:
        used, queries = self.blocks.units_of(number), self.blocks.finest.queries[number]
        if len(used) == 1:
            return units[used[0]]
        keys, values = zip(*(units[unit] for unit in used), strict=True)
        return one_for_each_query(torch.cat(keys, 1), queries), one_for_each_query(torch.cat(values, 1), queries)


def _heads(x: Tensor, count: int) -> Tensor:
    """[..., heads * H] to [..., heads, H]."""
    return x.unflatten(-1, (count, -1))  # type: ignore[no-untyped-call, no-any-return]


class ExactFeedForward(nn.Module):
    """As FeedForward, block by block. Forward is collective."""

    def __init__(self, params: Params, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh
        blocks = blocks_of(params, mesh.rank, mesh.size)
        self.own, width = blocks.own, blocks.finest.ffn[0].size
        self.w1 = BlockLinear(params.dim, width, self.own)
        self.w3 = BlockLinear(params.dim, width, self.own)
        self.w2 = BlockLinear(width, params.dim, self.own)

    def forward(self, x_BTD: Tensor) -> Tensor:
        parts = (self._block(number, x_BTD) for number in self.own)
        return sum_of_blocks(parts, len(self.own), self.mesh).type_as(x_BTD)

    def _block(self, number: int, x_BTD: Tensor) -> Tensor:
        # Vector instructions and what is left behind the last full vector may round apart: by block here too.
        gated = F.silu(self.w1.block(x_BTD, number)) * self.w3.block(x_BTD, number)
        return self.w2.block(gated, number)


def exact_output(params: Params, mesh: Mesh) -> BlockLinear:
    """The output layer: this rank's share of the vocabulary, block by block."""
    blocks = blocks_of(params, mesh.rank, mesh.size)
    return BlockLinear(params.dim, blocks.finest.vocabulary[0].size, blocks.own)


def sum_of_blocks(parts: Iterator[Tensor], count: int, mesh: Mesh) -> Tensor:
    """The sum of the parts of all ranks' blocks in float32, in an order that is the same at every MP. Collective.

    Neighbours are added, then neighbours among these sums, for as long as their number is even, whoever holds them;
    what is left is added from first to last. `parts`: this rank's `count`, made one by one as they are needed.
    """
    held = _neighbours_added(parts, count)
    if not mesh.alone:
        assert not (torch.is_grad_enabled() and held[0].requires_grad), "the exact mode has no backward over ranks"
        everyone = all_gather_first_dim(torch.stack(held), mesh)
        held = _neighbours_added(iter(everyone.unbind(0)), len(everyone))
    return reduce(torch.add, held)


def _neighbours_added(parts: Iterator[Tensor], count: int) -> list[Tensor]:
    """An odd number of sums, each of as many parts: the largest power of two that divides `count`."""
    each = count & -count
    return [_tree(parts, each) for _ in range(count // each)]


def _tree(parts: Iterator[Tensor], count: int) -> Tensor:
    """The sum of the next `count` parts, a power of two; only one sum of each size waits at a time."""
    if count == 1:
        return next(parts).float()
    return _tree(parts, count // 2) + _tree(parts, count // 2)
