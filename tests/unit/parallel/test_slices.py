"""Which part of a dimension a rank owns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import RefusedError
from parallel.slices import Slice, even_share, share, strided_shares

COUNTS = st.integers(1, 8)


def indices(slices: list[Slice]) -> list[int]:
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
