"""The C++ products against torch's in float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.kernels import native
from parallel.kernels.building import library
from parallel.kernels.products import gated_products, products
from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here: torch's kernels do the work")

# (out, in): less than a vector, odd, several chunks, and widths that are no whole number of blocks.
SHAPES = [(3, 5), (37, 48), (100, 200), (9, 1000), (700, 1024)]
# A sum of up to 1024 products of normal numbers over the root of their number: of about 1, in float32 with an error of
# some 1e-7 for each of its few dozen additions; x as 16-bit whole numbers adds 32767^-1 of its largest number.
FLOAT32, WHOLES = 2e-6, 3e-4
# One rounding of up to 4 to bfloat16's 8 bits.
BFLOAT16 = 4 * 2.0**-8


def numbers(*shape: int, seed: int = 99) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights_of(out: int, width: int, count: int) -> list[Tensor]:
    return [numbers(out, width, seed=seed) / width**0.5 for seed in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", range(1, native.MOST_ROWS + 1))
def test_products_of_few_rows_are_those_of_float64(shape: tuple[int, int], rows: int) -> None:
    out, width = shape
    x, weights = numbers(rows, width), weights_of(out, width, 3)
    for dtype, near in ((torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)):
        cast, rounded = x.to(dtype), [weight.to(dtype) for weight in weights]
        expected = torch.cat([cast.double() @ weight.double().T for weight in rounded], -1)
        found = native.products(cast, rounded)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=near * 2)
        gated = F.silu(expected[:, :out]) * expected[:, out : 2 * out]
        found = native.products(cast, rounded[:2], gated=True)
        torch.testing.assert_close(found.double(), gated, rtol=2.0**-8, atol=near * 4)


def test_products_of_whole_numbers_are_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-8, 9, (5, 321), generator=generator).float()
    weight = torch.randint(-8, 9, (77, 321), generator=generator).float()
    assert torch.equal(native.products(x, [weight]), x @ weight.T)
    assert torch.equal(native.products(x.bfloat16(), [weight.bfloat16()]), (x @ weight.T).bfloat16())


@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_products_are_those_of_the_weights_written_out(
    kind: type[Int8Weight] | type[Int4Weight], shape: tuple[int, int]
) -> None:
    out, width = shape
    weights: list[QuantisedWeight] = [kind.of(weight) for weight in weights_of(out, width, 2)]
    for rows in (1, 3, 8):
        x = numbers(rows, width)
        expected = torch.cat([x.double() @ weight.dequantised(torch.float64).T for weight in weights], -1)
        torch.testing.assert_close(native.products(x, weights).double(), expected, rtol=0, atol=WHOLES * 2)
        found = native.products(x.bfloat16(), weights).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=BFLOAT16 * 2)


@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_quantised_weight_is_written_out_as_torch_does(
    kind: type[Int8Weight] | type[Int4Weight], shape: tuple[int, int]
) -> None:
    weight = kind.of(numbers(*shape))
    # A product and a sum in one rounding instead of two.
    torch.testing.assert_close(
        native.write_out(weight, torch.float32), weight.dequantised(torch.float32), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        native.write_out(weight, torch.bfloat16), weight.dequantised(torch.bfloat16), rtol=2.0**-7, atol=1e-6
    )


def test_a_row_is_the_same_whatever_stands_beside_it_and_on_any_number_of_threads() -> None:
    x, weights = numbers(8, 500), weights_of(900, 500, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [native.products(x[row : row + 1], weights) for row in range(8)]
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(native.products(x, weights), torch.cat(alone))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight, None])
def test_what_is_not_finite_is_not_hidden(kind: type[Int8Weight] | None) -> None:
    x, weight = numbers(2, 128), numbers(6, 128)
    x[1, 70] = torch.inf
    found = native.products(x, [weight if kind is None else kind.of(weight)])
    assert bool(found[0].isfinite().all())
    assert not bool(found[1].isfinite().any())


def test_rows_that_kernels_do_not_take_go_to_torch() -> None:
    x, weights = numbers(9, 64), weights_of(32, 64, 2)
    torch.testing.assert_close(products(x, weights), torch.cat([F.linear(x, weight) for weight in weights], -1))
    gated = F.silu(F.linear(x, weights[0])) * F.linear(x, weights[1])
    torch.testing.assert_close(gated_products(x, *weights), gated)
    half = products(x[:1].half(), [weight.half() for weight in weights])
    assert half.dtype == torch.float16


def test_gradients_go_through_torch() -> None:
    x, weight = numbers(2, 16).requires_grad_(), numbers(4, 16).requires_grad_()
    products(x, [weight]).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.detach().sum(0).expand(4, -1))


def test_rows_of_another_width_are_no_rows_for_a_weight() -> None:
    with pytest.raises(AssertionError, match="x is 32 wide, the weights are not"):
        native.products(numbers(1, 32), [numbers(4, 64)])


def test_a_library_that_does_not_load_and_a_folder_that_is_not_ours_are_passed_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative cache folder means nothing; an empty file, as a crash leaves it, is built anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    library.cache_clear()
    try:
        assert library() is not None
        (built,) = (tmp_path / "home" / ".cache" / "shardrun").glob("*.so")
        built.unlink()
        built.touch()
        library.cache_clear()
        assert library() is not None
        assert built.stat().st_size > 0
        assert not (tmp_path / "here").exists()
    finally:
        library.cache_clear()


def test_no_compiler_is_told_and_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library.cache_clear()
    try:
        monkeypatch.setenv("PATH", str(tmp_path))
        with caplog.at_level("WARNING", logger="shardrun"):
            assert library() is None
            x, weight = numbers(1, 16), numbers(4, 16)
            torch.testing.assert_close(products(x, [weight]), F.linear(x, weight))
        assert [record.message for record in caplog.records] == [
            "note: decoding runs on torch's kernels, about half as fast on a CPU: no C++ compiler was found (g++, "
            "clang++, c++); install one, as g++"
        ]
    finally:
        library.cache_clear()
