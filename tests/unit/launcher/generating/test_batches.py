"""Batches: every request once, of like lengths, and the same ones whatever has been answered already."""

import random
from array import array

from hypothesis import given
from hypothesis import strategies as st

from launcher.generating.batches import WINDOW_BATCHES, batches_of
from launcher.generating.requests import Request


def requests(lengths: list[int]) -> list[Request]:
    """A request of each length; one of length 0 is not to be run."""
    return [
        Request(index=index, asked={}, ids=array("i", range(length)), error=None if length else "wrong")
        for index, length in enumerate(lengths)
    ]


LENGTHS = st.lists(st.integers(0, 40), max_size=120)
SIZES = st.integers(1, 9)


@given(LENGTHS, SIZES)
def test_every_request_that_is_to_be_run_is_in_one_batch_and_no_batch_is_too_large(
    lengths: list[int], size: int
) -> None:
    batches = list(batches_of(requests(lengths), size))
    found = sorted(request.index for batch in batches for request in batch)
    assert found == [index for index, length in enumerate(lengths) if length]
    assert all(1 <= len(batch) <= size for batch in batches)
    # Only the last batch of all may have room left.
    assert sum(len(batch) < size for batch in batches) <= 1


@given(LENGTHS, SIZES, st.data())
def test_a_run_that_is_gone_on_with_makes_the_same_batches(lengths: list[int], size: int, data: st.DataObject) -> None:
    given_requests = requests(lengths)
    first = data.draw(st.integers(0, len(lengths)))
    whole = list(batches_of(given_requests, size))
    left = list(batches_of(given_requests, size, first))
    assert left == [batch for batch in whole if max(request.index for request in batch) >= first]


@given(LENGTHS, SIZES)
def test_no_request_waits_longer_than_for_its_window(lengths: list[int], size: int) -> None:
    to_run = [request.index for request in requests(lengths) if request.to_run]
    answered: set[int] = set()
    for number, batch in enumerate(batches_of(requests(lengths), size)):
        answered |= {request.index for request in batch}
        # Windows of 1, 2 and 4 batches come first: of n + 1 batches at least n + 1 less a window are in order.
        sure = max(1, number + 2 - WINDOW_BATCHES) if number else 1
        assert answered >= set(to_run[: sure * size])


def test_the_first_batch_is_the_first_requests() -> None:
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    first, *_ = batches_of(requests(lengths), 4)
    assert sorted(request.index for request in first) == [0, 1, 2, 3]


def test_packing_wastes_less_on_padding_than_the_order_of_the_list() -> None:
    draw = random.Random(1)
    lengths = [draw.choice([4, 8, 16, 32, 64, 128, 256]) for _ in range(1000)]
    found = requests(lengths)

    def padded(batches: list[list[Request]]) -> int:
        return sum(len(batch) * max(request.length for request in batch) for batch in batches)

    in_order = padded([found[start : start + 8] for start in range(0, len(found), 8)])
    assert padded(list(batches_of(found, 8))) < 1.25 * sum(lengths) < 2 * sum(lengths) < in_order
