"""Which blocks each rank holds in the exact mode. Whole-number arithmetic only; no torch.

A block is what a rank holds at the largest MP that divides the model evenly; at a smaller one a rank holds several,
in order. KV heads go by units: a block's own, or a single head where several blocks share it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from model.cuts import Weight
from model.params import Params
from model.split import Split, split_of
from parallel.errors import RefusedError, one_of
from parallel.slices import Slice, deal


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a model and those of one rank. `finest.heads[b]` and so on is what block b holds."""

    finest: Split
    # The KV heads of each unit.
    unit_heads: tuple[Slice, ...]
    # Numbers of this rank's blocks and units. A unit may stand on several ranks.
    own: range
    own_units: range

    def units_of(self, block: int) -> range:
        """The units that a block's queries use."""
        return _units_in(self.finest.kv_heads[block], self.unit_heads)

    def parts(self, weight: Weight) -> Mapping[int, Slice]:
        """This rank's parts of a weight that is cut: the slice of the uncut one, by number of block or unit."""
        by_unit = weight.axis == "kv_heads"
        slices = self.unit_heads if by_unit else getattr(self.finest, weight.axis)
        return {number: slices[number] * weight.unit for number in (self.own_units if by_unit else self.own)}


@lru_cache(maxsize=64)
def exact_sizes(params: Params) -> tuple[int, ...]:
    """The MPs that divide a model evenly, 1 first; the last is a multiple of each."""
    most = gcd(params.n_heads, params.ffn_dim, params.vocab_size, params.dim)
    return tuple(mp for mp in range(1, most + 1) if most % mp == 0 and split_of(params, mp).even)


def check_exact(params: Params, ranks: int) -> None:
    """Refuse an MP that does not divide the model evenly."""
    sizes = exact_sizes(params)
    if ranks not in sizes:
        raise RefusedError(
            f"--exact at MP {ranks}: {params.n_heads} heads ({params.n_kv_heads} KV heads), {params.ffn_dim} "
            f"feed-forward columns, {params.vocab_size} vocabulary entries and a width of {params.dim} do not all go "
            f"evenly; choose an MP of {one_of(list(sizes))}, or drop --exact"
        )


def blocks_of(params: Params, rank: int, ranks: int) -> Blocks:
    """The blocks of rank `rank` of `ranks`. RefusedError where that MP does not divide the model evenly."""
    check_exact(params, ranks)
    finest = split_of(params, exact_sizes(params)[-1])
    each = finest.mp // ranks
    unit_heads = deal(params.n_kv_heads, min(finest.mp, params.n_kv_heads))
    return Blocks(
        finest=finest,
        unit_heads=unit_heads,
        own=range(rank * each, (rank + 1) * each),
        own_units=_units_in(split_of(params, ranks).kv_heads[rank], unit_heads),
    )


def _units_in(kv_heads: Slice, unit_heads: tuple[Slice, ...]) -> range:
    """The units that `kv_heads` are made of."""
    size = unit_heads[0].size
    return range(kv_heads.start // size, kv_heads.stop // size)
