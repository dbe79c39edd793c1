"""The Triton products against torch's in float64: on a GPU compiled, elsewhere in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight, Weight

triton_products = pytest.importorskip("parallel.kernels.triton_products", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []

KINDS = {"plain": lambda weight: weight, "int8": Int8Weight.of, "int4": Int4Weight.of}
# A sum of up to 200 products of normal numbers over the root of their number: of about 1, each addition in float32.
FLOAT32 = 3e-6
# One rounding to bfloat16's 8 bits; the interpreter cuts instead, which is twice that.
BFLOAT16 = 2.0**-7


def numbers(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def plain(weight: Weight) -> Tensor:
    return (weight.dequantised(torch.float64) if isinstance(weight, QuantisedWeight) else weight).double()


def require_near(found: Tensor, expected: Tensor) -> None:
    near = (0.0, FLOAT32) if found.dtype == torch.float32 else (BFLOAT16, 1e-3)
    torch.testing.assert_close(found.double(), expected, rtol=near[0], atol=near[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
# Widths: less than a lane, no whole number of lanes or groups, several groups.
@pytest.mark.parametrize(("rows", "width"), [(1, 200), (3, 6), (3, 133)])
def test_products_are_those_of_float64(kind: str, rows: int, width: int, dtype: torch.dtype) -> None:
    x = numbers(rows, 1, width).to(dtype)
    weights = [KINDS[kind]((numbers(6, width, seed=seed) / width**0.5).to(dtype)) for seed in range(2)]
    first, second = (x.double() @ plain(weight).T for weight in weights)
    # Six columns by four: the last program has fewer.
    tiling = triton_products.Tiling(columns=4)
    found = triton_products.products(x, weights, tiling=tiling)
    assert found.dtype == dtype
    require_near(found, torch.cat([first, second], -1))
    require_near(triton_products.products(x, weights, gated=True, tiling=tiling), F.silu(first) * second)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_to_the_bit_whatever_rows_stand_beside_it(kind: str) -> None:
    x, weight = numbers(9, 70), KINDS[kind](numbers(2, 70))
    together = triton_products.products(x, [weight])
    for row in (0, 7, 8):
        assert torch.equal(triton_products.products(x[row : row + 1], [weight])[0], together[row])


def test_products_of_whole_numbers_are_exact() -> None:
    x, weight = (3 * numbers(2, 100)).round(), (3 * numbers(7, 100)).round()
    assert torch.equal(triton_products.products(x, [weight]), x @ weight.T)


@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
def test_weights_that_stand_behind_one_another_are_read_in_one_pass(kind: str) -> None:
    whole = KINDS[kind](numbers(9, 64))
    sizes = (5, 2, 2)
    if isinstance(whole, QuantisedWeight):
        pairs = zip(whole.numbers.split(sizes), whole.scales.split(sizes), strict=True)
        parts: list[Weight] = [type(whole)(part, scales, 64) for part, scales in pairs]
    else:
        parts = list(whole.split(sizes))
    assert len(triton_products._together([triton_products._matrix(part) for part in parts])) == 1
    x = numbers(1, 64)
    assert torch.equal(triton_products.products(x, parts), triton_products.products(x, [whole]))


def test_what_is_not_finite_stays_so() -> None:
    x, weight = numbers(2, 40), numbers(3, 40)
    x[0, 17] = float("nan")
    found = triton_products.products(x, [weight])
    assert found.isfinite().tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("kind", KINDS)
def test_how_columns_are_dealt_out_changes_no_bit(kind: str) -> None:
    x, weight = numbers(1, 70), KINDS[kind](numbers(5, 70))
    usual = triton_products.tiling_of(5, list(KINDS).index(kind), False)
    found = [triton_products.products(x, [weight], tiling=replace(usual, columns=columns)) for columns in (1, 4)]
    assert torch.equal(*found)
