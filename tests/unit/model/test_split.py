"""Which heads each rank owns, at any MP: published shapes, and every small shape there is."""

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.params import Params
from model.split import Split, check_ranks, split_of
from parallel.errors import RefusedError
from parallel.slices import Slice

HEAD_DIM = 8


def params_of(n_heads: int, n_kv_heads: int, ffn_dim: int = 240, vocab_size: int = 480) -> Params:
    return Params(
        dim=HEAD_DIM * n_heads,
        n_layers=1,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_reason="by the test",
    )


def cut(n_heads: int, n_kv_heads: int, mp: int) -> Split:
    return split_of(params_of(n_heads, n_kv_heads), mp)


def sizes(owned: tuple[Slice, ...]) -> list[int]:
    return [own.size for own in owned]


def held(owned: tuple[Slice, ...]) -> list[list[int]]:
    """The numbers that each rank owns."""
    return [list(range(own.start, own.stop)) for own in owned]


def test_eight_kv_heads_on_six_ranks_are_two_two_one_one_one_one() -> None:
    # Llama 3 8B: 32 query heads, four to a KV head.
    split = cut(32, 8, 6)
    assert sizes(split.kv_heads) == [2, 2, 1, 1, 1, 1]
    assert sizes(split.heads) == [8, 8, 4, 4, 4, 4]
    assert split.queries == ((4, 4), (4, 4), (4,), (4,), (4,), (4,))
    assert not split.even and not split.meta


def test_fifty_two_heads_on_eight_ranks_are_four_sevens_and_four_sixes() -> None:
    # Llama 1 30B, whose 52 heads have a key and a value each.
    split = cut(52, 52, 8)
    assert sizes(split.heads) == sizes(split.kv_heads) == [7, 7, 7, 7, 6, 6, 6, 6]
    assert split.heads == split.kv_heads
    assert all(set(counts) == {1} for counts in split.queries)
    assert not split.meta


def test_eight_kv_heads_on_sixteen_ranks_stand_on_two_neighbours_each() -> None:
    # Llama 3 70B and Llama 3.1 405B, as Meta's own MP16 files of the latter: 0, 0, 1, 1, ...
    for n_heads in (64, 128):
        split = cut(n_heads, 8, 16)
        assert held(split.kv_heads) == [[rank // 2] for rank in range(16)]
        assert sizes(split.heads) == [n_heads // 16] * 16
        assert split.even and split.meta and split.kv_copies == 2


def test_eight_kv_heads_on_twelve_ranks_stand_where_their_queries_are() -> None:
    # Llama 3.2 3B: 24 query heads, three to a KV head; two query heads to a rank.
    split = cut(24, 8, 12)
    assert sizes(split.heads) == [2] * 12
    assert held(split.kv_heads) == [[0], [0, 1], [1], [2], [2, 3], [3], [4], [4, 5], [5], [6], [6, 7], [7]]
    assert split.queries == ((2,), (1, 1), (2,)) * 4
    # As many query heads everywhere, but Meta's code wants as many KV heads too.
    assert split.even and not split.meta and split.kv_copies == 0


def test_three_kv_heads_each_on_two_ranks_as_halves_of_their_queries() -> None:
    split = cut(12, 3, 6)
    assert held(split.kv_heads) == [[0], [0], [1], [1], [2], [2]]
    assert split.queries == ((2,),) * 6
    assert split.meta and split.kv_copies == 2


def test_with_one_rank_everything_is_its_own() -> None:
    split = cut(12, 4, 1)
    assert (split.heads, split.kv_heads) == ((Slice(0, 12),), (Slice(0, 4),))
    assert (split.ffn, split.vocabulary, split.width) == ((Slice(0, 240),), (Slice(0, 480),), (Slice(0, 96),))
    assert split.meta and split.kv_copies == 1


@pytest.mark.parametrize(
    ("changes", "mp", "sentence"),
    [
        ({}, 9, "cannot cut 8 heads over 9 ranks; choose an MP of 8 or fewer"),
        ({"n_kv_heads": 2}, 16, "cannot cut 8 heads over 16 ranks; choose an MP of 8 or fewer"),
        ({"ffn_dim": 5}, 6, "cannot cut 5 feed-forward columns over 6 ranks; choose an MP of 5 or fewer"),
        ({"vocab_size": 3}, 4, "cannot cut 3 vocabulary entries over 4 ranks; choose an MP of 3 or fewer"),
    ],
)
def test_more_ranks_than_there_are_things_to_deal_out_are_refused(
    changes: dict[str, int], mp: int, sentence: str
) -> None:
    params = replace(params_of(8, 8), **changes)  # type: ignore[arg-type]
    for refuse in (check_ranks, split_of):
        with pytest.raises(RefusedError, match=f"^{sentence}$"):
            refuse(params, mp)


def test_a_vocabulary_that_is_not_known_yet_refuses_no_number_of_ranks() -> None:
    check_ranks(replace(params_of(8, 8), vocab_size=-1), 8)


EVERY_SMALL_SHAPE = [
    (n_heads, n_kv_heads, mp)
    for n_heads in range(1, 25)
    for n_kv_heads in range(1, n_heads + 1)
    if n_heads % n_kv_heads == 0
    for mp in range(1, n_heads + 1)
]


def test_at_every_small_shape_each_query_head_stands_once_with_the_kv_heads_that_it_uses() -> None:
    for n_heads, n_kv_heads, mp in EVERY_SMALL_SHAPE:
        split, shape = cut(n_heads, n_kv_heads, mp), (n_heads, n_kv_heads, mp)
        heads, kv_heads = held(split.heads), held(split.kv_heads)
        assert len(heads) == len(kv_heads) == len(split.queries) == mp, shape
        assert [*chain(*heads)] == list(range(n_heads)), shape
        for own, own_kv, queries in zip(heads, kv_heads, split.queries, strict=True):
            used = [head * n_kv_heads // n_heads for head in own]
            assert own_kv == sorted(set(used)), shape
            assert list(queries) == [used.count(kv_head) for kv_head in own_kv], shape
            assert sum(queries) == len(own), shape


def test_at_every_small_shape_no_rank_has_more_than_it_must() -> None:
    for n_heads, n_kv_heads, mp in EVERY_SMALL_SHAPE:
        split, shape = cut(n_heads, n_kv_heads, mp), (n_heads, n_kv_heads, mp)
        counts = sizes(split.heads)
        # Up to n_kv_heads ranks a KV head and its queries stay together; beyond, single query heads are dealt.
        unit = n_heads // n_kv_heads if mp <= n_kv_heads else 1
        assert min(counts) > 0 and max(counts) - min(counts) == (unit if n_heads // unit % mp else 0), shape
        assert counts == sorted(counts, reverse=True), shape
        if mp <= n_kv_heads:
            assert [*chain(*held(split.kv_heads))] == list(range(n_kv_heads)), shape


def metas_code_can_read(n_heads: int, n_kv_heads: int, ffn_dim: int, vocab_size: int, mp: int) -> bool:
    """Whether plain Meta code runs on files cut like this, as llama's `model.py` and fairscale demand it.

    Every cut dimension must divide; a rank has n_kv_heads // mp KV heads (of those in params.json, where a head
    that stands on several ranks counts once for each), and its query heads use them in equal parts, in order:
    query i of a rank uses KV head i // (queries // KV heads) of that rank.
    """
    if any(size % mp for size in (n_heads, ffn_dim, vocab_size, n_heads * HEAD_DIM)):
        return False
    stored = n_kv_heads if mp <= n_kv_heads else mp
    if stored % mp or stored % n_kv_heads:
        return False
    local_heads, local_kv_heads = n_heads // mp, stored // mp
    if local_heads % local_kv_heads:
        return False
    for rank in range(mp):
        for query in range(local_heads):
            mine = rank * local_kv_heads + query // (local_heads // local_kv_heads)
            wanted = (rank * local_heads + query) // (n_heads // n_kv_heads)
            # Repeated in place: stored head j is head j // copies.
            if mine // (stored // n_kv_heads) != wanted:
                return False
    return True


@pytest.mark.parametrize(("ffn_dim", "vocab_size"), [(5040, 10080), (256, 10080), (5040, 500)])
def test_a_split_is_metas_exactly_where_plain_meta_code_could_read_it(ffn_dim: int, vocab_size: int) -> None:
    seen = set()
    for n_heads, n_kv_heads, mp in EVERY_SMALL_SHAPE:
        split = split_of(params_of(n_heads, n_kv_heads, ffn_dim, vocab_size), mp)
        expected = metas_code_can_read(n_heads, n_kv_heads, ffn_dim, vocab_size, mp)
        assert split.meta == expected, (n_heads, n_kv_heads, mp)
        if expected:
            assert split.kv_copies == max(1, mp // n_kv_heads), (n_heads, n_kv_heads, mp)
        seen.add((expected, mp > n_kv_heads))
    assert len(seen) == 4, "the shapes no longer meet every case"


@given(ffn_dim=st.integers(24, 3000), vocab_size=st.integers(24, 3000), mp=st.integers(1, 24))
def test_columns_and_vocabulary_are_dealt_out_whole_and_in_order(ffn_dim: int, vocab_size: int, mp: int) -> None:
    split = split_of(params_of(24, 24, ffn_dim, vocab_size), mp)
    for owned, size in ((split.ffn, ffn_dim), (split.vocabulary, vocab_size), (split.width, 24 * HEAD_DIM)):
        assert [*chain(*held(owned))] == list(range(size))
        assert all(own.size > 0 for own in owned)
