"""Which part of a dimension a rank owns."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import RefusedError
from parallel.slices import Slice, cover, deal, deal_numbers, even_share, share, strided_shares

COUNTS = st.integers(1, 8)
RANKS = st.integers(1, 40)


def indices(slices: Iterable[Slice]) -> list[int]:
    return [index for own in slices for index in range(own.start, own.stop)]


def test_a_size_is_shared_evenly() -> None:
    assert even_share(32, 4, "heads") == 8


def test_a_remainder_is_refused_with_the_choices_that_leave_none() -> None:
    with pytest.raises(RefusedError) as caught:
        even_share(52, 8, "heads")
    assert str(caught.value) == ("cannot split 52 heads over 8 ranks evenly; choose an MP of 1, 2, 4, 13, 26 or 52")


def test_a_prime_is_refused_with_itself_as_the_only_other_choice() -> None:
    with pytest.raises(RefusedError, match=r"^cannot split 7 columns over 2 ranks evenly; choose an MP of 1 or 7$"):
        share(7, 0, 2, "columns")


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"^cannot split 2 heads over 4 ranks evenly; choose an MP of 1 or 2$"):
        share(2, 3, 4, "heads")


def test_shares_follow_each_other_in_order_of_rank() -> None:
    assert [share(12, rank, 3, "rows") for rank in range(3)] == [Slice(0, 4), Slice(4, 8), Slice(8, 12)]
    assert share(12, 1, 3, "rows").size == 4


def test_with_stride_2_a_rank_takes_its_part_of_each_fused_weight() -> None:
    assert strided_shares(16, 1, 4, 2, "rows") == [Slice(2, 4), Slice(10, 12)]


def test_a_stride_that_does_not_divide_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"^cannot split 9 rows, which are 2 weights fused, over 1 ranks evenly$"):
        strided_shares(9, 0, 1, 2, "rows")


@given(part=COUNTS, ranks=COUNTS, stride=COUNTS)
def test_the_ranks_own_every_index_exactly_once(part: int, ranks: int, stride: int) -> None:
    size = part * ranks * stride
    owned = [indices(strided_shares(size, rank, ranks, stride, "rows")) for rank in range(ranks)]
    assert {len(own) for own in owned} == {part * stride}
    assert sorted(index for own in owned for index in own) == list(range(size))


@given(part=COUNTS, ranks=COUNTS)
def test_stride_1_is_the_plain_share(part: int, ranks: int) -> None:
    size = part * ranks
    for rank in range(ranks):
        assert strided_shares(size, rank, ranks, 1, "rows") == [share(size, rank, ranks, "rows")]


# Shares that need not be even.


def assert_dealt_in_order(dealt: Sequence[Slice], size: int, ranks: int) -> None:
    """Every rank has a share, and the shares in order of rank are all numbers, each once."""
    assert len(dealt) == ranks
    assert indices(dealt) == list(range(size))


@given(count=st.integers(0, 500), ranks=RANKS)
def test_dealing_gives_each_thing_once_in_order_and_the_first_ranks_at_most_one_more(count: int, ranks: int) -> None:
    dealt = deal(count, ranks)
    assert_dealt_in_order(dealt, count, ranks)
    sizes = [own.size for own in dealt]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] == (1 if count % ranks else 0)


def test_eight_things_on_six_ranks_are_two_two_and_four_times_one() -> None:
    assert [own.size for own in deal(8, 6)] == [2, 2, 1, 1, 1, 1]
    assert deal(8, 3) == (Slice(0, 3), Slice(3, 6), Slice(6, 8))


def block_of(size: int) -> int:
    """The largest power of two, up to 16, that divides `size`."""
    return max(block for block in (1, 2, 4, 8, 16) if size % block == 0)


# Half of them multiples of 16, as the sizes of models are.
SIZES = st.integers(1, 3000) | st.integers(1, 200).map(lambda blocks: 16 * blocks)


@given(size=SIZES, ranks=RANKS)
def test_numbers_are_dealt_evenly_or_in_whole_blocks_or_one_by_one(size: int, ranks: int) -> None:
    dealt = deal_numbers(size, ranks)
    assert_dealt_in_order(dealt, size, ranks)
    sizes = [own.size for own in dealt]
    assert sizes == sorted(sizes, reverse=True)
    if size % ranks == 0:
        assert set(sizes) == {size // ranks}
    elif size // block_of(size) >= ranks:
        assert all(share % block_of(size) == 0 for share in sizes)
        assert sizes[0] - sizes[-1] == block_of(size)
        assert sizes[-1] > 0
    else:
        assert sizes[0] - sizes[-1] == 1


@pytest.mark.parametrize(
    ("size", "ranks", "sizes"),
    [
        # Llama 3 8B's feed-forward and vocabulary, and Llama 1 30B's feed-forward.
        (14336, 3, [4784, 4784, 4768]),
        (128256, 5, [25664, 25648, 25648, 25648, 25648]),
        (17920, 6, [2992, 2992, 2992, 2992, 2976, 2976]),
        # Code Llama's vocabulary: 2,001 blocks of 16.
        (32016, 7, [4576, 4576, 4576, 4576, 4576, 4576, 4560]),
        # Only 4 divides it; fewer blocks than ranks; a prime.
        (20, 3, [8, 8, 4]),
        (32, 3, [11, 11, 10]),
        (7, 3, [3, 2, 2]),
    ],
)
def test_the_shares_of_known_sizes(size: int, ranks: int, sizes: list[int]) -> None:
    assert [own.size for own in deal_numbers(size, ranks)] == sizes


def test_a_slice_counted_in_parts_met_by_another_and_seen_from_another() -> None:
    own = Slice(3, 5)
    assert own * 8 == Slice(24, 40)
    assert (own * 8).size == 8 * own.size
    assert own.within(Slice(4, 9)) == Slice(4, 5)
    assert own.within(Slice(0, 9)) == own
    assert own.within(Slice(5, 9)).size == own.within(Slice(0, 3)).size == 0
    assert own.from_start_of(Slice(2, 9)) == Slice(1, 3)


SLICES = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda ends: Slice(min(ends), max(ends)))


@given(one=SLICES, other=SLICES)
def test_what_two_slices_have_in_common_is_what_both_hold(one: Slice, other: Slice) -> None:
    common = one.within(other)
    assert indices([common]) == sorted({*indices([one])} & {*indices([other])})
    assert common.size >= 0


@given(held=st.lists(SLICES, max_size=12), wanted=SLICES, first=st.integers(0, 11))
def test_a_cover_gives_each_wanted_number_once_from_somebody_who_holds_it(
    held: list[Slice], wanted: Slice, first: int
) -> None:
    if not {*indices([wanted])} <= {*indices(held)}:
        with pytest.raises(AssertionError, match="nobody holds"):
            cover(wanted, held, first)
        return
    found = cover(wanted, held, first)
    assert indices(part for _, part in found) == indices([wanted])
    for index, part in found:
        assert part.size > 0
        assert held[index].start <= part.start < part.stop <= held[index].stop


@given(size=st.integers(1, 200), holders=RANKS, ranks=RANKS)
def test_what_was_dealt_to_some_covers_what_is_dealt_to_others(size: int, holders: int, ranks: int) -> None:
    held = deal_numbers(size, holders)
    for wanted in deal_numbers(size, ranks):
        found = cover(wanted, held)
        # Nobody holds what another holds, so there is one way only.
        expected = [(index, own.within(wanted)) for index, own in enumerate(held) if own.within(wanted).size]
        assert found == expected


def test_of_several_holders_the_first_choice_gives_what_it_holds_and_the_lowest_gives_the_rest() -> None:
    held = [Slice(0, 4), Slice(0, 4), Slice(4, 8), Slice(4, 8)]
    assert cover(Slice(0, 8), held) == [(0, Slice(0, 4)), (2, Slice(4, 8))]
    assert cover(Slice(0, 4), held, first=1) == [(1, Slice(0, 4))]
    assert cover(Slice(2, 6), held, first=3) == [(0, Slice(2, 4)), (3, Slice(4, 6))]
    assert cover(Slice(5, 5), held) == []
