"""Which part of a Llama each rank owns, at any MP up to the number of heads. Whole-number arithmetic only.

Query heads go with the KV head that they use. Up to n_kv_heads ranks, whole groups (a KV head and its
queries) are dealt out, the first ranks having one more where it does not go evenly. Beyond, the query
heads are dealt out in order and each rank keeps every KV head that its queries use, so that KV heads
stand on several ranks (as in Meta's own MP16 files: 0, 0, 1, 1, ...). docs/adr/0007-any-mp.md
"""

from dataclasses import dataclass
from functools import lru_cache

from model.params import Params
from parallel.errors import RefusedError
from parallel.slices import Slice, deal, deal_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What rank r of `mp` owns: slices[r] of the heads, of the KV heads (may overlap), and so on."""

    mp: int
    heads: tuple[Slice, ...]
    kv_heads: tuple[Slice, ...]
    ffn: tuple[Slice, ...]
    vocabulary: tuple[Slice, ...]
    # The model's width, where an embedding is cut along it.
    width: tuple[Slice, ...]
    # How many queries each of a rank's KV heads serves there.
    queries: tuple[tuple[int, ...], ...]

    @property
    def even(self) -> bool:
        """True where every rank owns as much as every other of everything but KV heads held several times."""
        axes = (self.heads, self.ffn, self.vocabulary, self.width)
        return all(len({own.size for own in slices}) == 1 for slices in axes)

    @property
    def kv_copies(self) -> int:
        """On how many ranks each KV head stands, where that is the same for all and each rank has one; else 0.

        1 where the KV heads are dealt out evenly without a copy.
        """
        sizes = {own.size for own in self.kv_heads}
        holders = [sum(own.start <= head < own.stop for own in self.kv_heads) for head in range(self.kv_heads[-1].stop)]
        if len(sizes) != 1 or len(set(holders)) != 1:
            return 0
        return holders[0] if holders[0] == 1 or sizes == {1} else 0

    @property
    def meta(self) -> bool:
        """True where Meta's own reader could load files cut like this."""
        return self.even and self.kv_copies > 0


def check_ranks(params: Params, ranks: int) -> None:
    """Refuse more ranks than there are heads (or columns) to deal out."""
    limits = {"heads": params.n_heads, "feed-forward columns": params.ffn_dim, "vocabulary entries": params.vocab_size}
    for what, count in limits.items():
        if 0 < count < ranks:
            raise RefusedError(f"cannot cut {count} {what} over {ranks} ranks; choose an MP of {count} or fewer")


@lru_cache(maxsize=64)
def split_of(params: Params, mp: int) -> Split:
    """The split of a model over `mp` ranks. RefusedError above n_heads."""
    check_ranks(params, mp)
    group = params.n_heads // params.n_kv_heads
    if mp <= params.n_kv_heads:
        kv_heads = deal(params.n_kv_heads, mp)
        heads = tuple(own * group for own in kv_heads)
    else:
        heads = deal(params.n_heads, mp)
        kv_heads = tuple(Slice(own.start // group, (own.stop - 1) // group + 1) for own in heads)
    queries = tuple(
        tuple(own.within(Slice(head, head + 1) * group).size for head in range(kv.start, kv.stop))
        for own, kv in zip(heads, kv_heads, strict=True)
    )
    return Split(
        mp=mp,
        heads=heads,
        kv_heads=kv_heads,
        ffn=deal_numbers(params.ffn_dim, mp),
        vocabulary=deal_numbers(params.vocab_size, mp),
        width=deal_numbers(params.dim, mp),
        queries=queries,
    )
