"""RMSNorm against its formula."""

import torch

from model.norm import RMSNorm


def norm_of(dim: int, eps: float, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(dim, eps).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-2, 3, dim))
    return norm


def formula(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    """In float64, x / sqrt(mean(x^2) + eps) * weight."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()


def test_the_norm_is_the_formula_in_float64() -> None:
    x = torch.randn(3, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for eps in (1e-5, 1e-6, 0.5):
        norm = norm_of(64, eps, torch.float64)
        torch.testing.assert_close(norm(x)[1], formula(x, norm), rtol=1e-12, atol=1e-12)


def test_eps_stands_inside_the_root_so_that_zeros_stay_zeros() -> None:
    norm = norm_of(8, 1e-5, torch.float64)
    assert torch.equal(norm(torch.zeros(2, 8, dtype=torch.float64))[1], torch.zeros(2, 8, dtype=torch.float64))
    tiny = torch.full((1, 8), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(norm(tiny)[1], formula(tiny, norm), rtol=1e-12, atol=1e-12)


def test_half_precision_is_squared_and_summed_in_float32() -> None:
    """300 * 300 overflows float16, and a sum of 4096 squares in bfloat16 would lose its last terms."""
    for dtype, step in ((torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)):
        x = (300 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(2))).to(dtype)
        norm = norm_of(4096, 1e-5, dtype)
        _, normed = norm(x)
        assert normed.dtype == dtype
        # At most two roundings to the dtype, each half a step; 2^-24 is float16's step next to 0.
        torch.testing.assert_close(normed.double(), formula(x, norm), rtol=step, atol=2.0**-24)


def test_what_is_added_before_is_part_of_the_norm_and_of_the_gradient() -> None:
    x, more = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 16, dtype=torch.float64)
    norm = norm_of(16, 1e-5, torch.float64)
    total, normed = norm(x, more)
    assert torch.equal(total, x + more)
    torch.testing.assert_close(normed, formula(x + more, norm), rtol=1e-12, atol=1e-12)
    (total.sum() + normed.sum()).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
