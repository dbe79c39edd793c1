"""Digests tell apart whatever differs in one place, and see bits alone. Worked out here from bytes, without tensors."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.digest import digests

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.float8_e4m3fn,
)
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
# Products are taken in pieces of 65,536 words.
LONG = 3 * 65536 + 17


def digest(x: Tensor) -> int:
    """Of the whole tensor."""
    (found,) = digests(x.unsqueeze(0)).tolist()
    assert isinstance(found, int)
    return found


def digest_of_bytes(raw: bytes, width: int) -> int:
    """What the docstring says, modulo 2**64, as a signed number."""
    total = 0
    for place, start in enumerate(range(0, len(raw), width)):
        word = int.from_bytes(raw[start : start + width], sys.byteorder, signed=True)
        total += (2 * place + 1) * word
    return (total + 2**63) % 2**64 - 2**63


def tensor_of(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)


@st.composite
def raws(draw: st.DrawFn) -> tuple[bytes, torch.dtype, tuple[int, ...]]:
    """Any bits, as a tensor of any dtype and shape: NaNs, infinities and subnormal numbers too."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    return draw(st.binary(min_size=size, max_size=size)), dtype, shape


@settings(deadline=None)
@given(raws())
def test_a_digest_is_the_sum_of_words_times_the_odd_numbers(found: tuple[bytes, torch.dtype, tuple[int, ...]]) -> None:
    raw, dtype, shape = found
    assert digest(tensor_of(raw, dtype, shape)) == digest_of_bytes(raw, dtype.itemsize)


@settings(deadline=None)
@given(raws(), st.data())
def test_any_flipped_bit_gives_another_digest(
    found: tuple[bytes, torch.dtype, tuple[int, ...]], data: st.DataObject
) -> None:
    raw, dtype, shape = found
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    flipped = bytearray(raw)
    flipped[bit // 8] ^= 1 << bit % 8
    assert digest(tensor_of(raw, dtype, shape)) != digest(tensor_of(flipped, dtype, shape))


@settings(deadline=None)
@given(raws(), st.data())
def test_two_elements_that_change_places_give_another_digest_unless_they_are_the_same_bits(
    found: tuple[bytes, torch.dtype, tuple[int, ...]], data: st.DataObject
) -> None:
    raw, dtype, shape = found
    width = dtype.itemsize
    a, b = (data.draw(st.integers(0, len(raw) // width - 1)) * width for _ in range(2))
    swapped = bytearray(raw)
    swapped[a : a + width], swapped[b : b + width] = raw[b : b + width], raw[a : a + width]
    same = digest(tensor_of(raw, dtype, shape)) == digest(tensor_of(swapped, dtype, shape))
    assert same == (raw[a : a + width] == raw[b : b + width])


@settings(deadline=None)
@given(raws(), st.data())
def test_how_a_tensor_lies_in_memory_does_not_matter(
    found: tuple[bytes, torch.dtype, tuple[int, ...]], data: st.DataObject
) -> None:
    raw, dtype, shape = found
    x = tensor_of(raw, dtype, shape)
    order = data.draw(st.permutations(range(x.dim())))
    turned = x.permute(*order).contiguous().permute(*[order.index(dim) for dim in range(x.dim())])
    before, behind = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    padded = tensor_of(bytes(before * dtype.itemsize) + raw + bytes(behind * dtype.itemsize), dtype, (-1,))
    inside = padded[before : before + x.numel()].view(shape)
    assert digest(x) == digest(turned) == digest(inside) == digest(x.clone())


def test_nans_and_zeros_are_told_apart_by_their_bits() -> None:
    for dtype, quiet, other in ((torch.float32, 0x7FC00000, 0x7FC00001), (torch.bfloat16, 0x7FC0, 0x7FC1)):
        whole = torch.int32 if dtype == torch.float32 else torch.int16
        nan = torch.tensor([1, quiet], dtype=whole).view(dtype)
        assert nan.isnan().any()
        assert digest(nan) == digest(nan.clone())
        assert digest(nan) != digest(torch.tensor([1, other], dtype=whole).view(dtype))
        assert digest(torch.tensor([0.0, 1.0], dtype=dtype)) != digest(torch.tensor([-0.0, 1.0], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_go_on_from_piece_to_piece_of_a_long_tensor(dtype: torch.dtype) -> None:
    x = torch.randn(LONG, generator=torch.Generator().manual_seed(1)).to(dtype)
    raw = bytes(x.view(torch.uint8).tolist())
    whole = digest(x)
    assert whole == digest_of_bytes(raw, dtype.itemsize)
    for a, b in ((0, LONG - 1), (65535, 65536), (3, 65536 + 3), (5, 2 * 65536 + 6)):
        swapped = x.clone()
        swapped[a], swapped[b] = x[b], x[a]
        assert digest(swapped) != whole


def test_each_row_has_a_digest_of_its_own() -> None:
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    found = digests(x)
    assert found.dtype == torch.int64
    assert found.tolist() == [digest(row) for row in x]
