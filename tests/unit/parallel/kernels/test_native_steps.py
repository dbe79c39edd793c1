"""The C++ norm and attention of a step against plain torch in float64, and recorded calls against calls."""

import pytest
import torch
from torch import Tensor

from parallel.kernels import native
from parallel.kernels.attention import attend_step
from parallel.kernels.building import library
from parallel.kernels.calls import Program, recording
from parallel.kernels.norm import add_norm

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here: torch's kernels do the work")

# Softmax and its weighted mean of normal numbers in float32, and one rounding of up to 4 to bfloat16.
NEAR = {torch.float32: 3e-6, torch.bfloat16: 4 * 2.0**-8}
HEADS = {"one for all": (4,), "one each": (1, 1, 1), "uneven": (3, 1, 2)}


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("width", [5, 48, 288])
def test_the_norm_adds_in_place_and_normalises(dtype: torch.dtype, width: int) -> None:
    x, more, weight = (numbers(rows, width, seed=rows).to(dtype) for rows in (3, 3, 1))
    total = x + more
    expected = total.double() / (total.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    found, normed = add_norm(x, more, weight[0], 1e-5)
    assert torch.equal(found, total)
    torch.testing.assert_close(normed.double(), expected, rtol=2.0**-8, atol=NEAR[dtype])


def attended(
    qkv_BX: Tensor, keys: Tensor, values: Tensor, turns: Tensor, places: Tensor, queries: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """The same in float64, one row and one head after the other; keys and values with the new ones."""
    rows, kv_heads, _, width = keys.shape
    heads = sum(queries)
    keys, values = keys.double().clone(), values.double().clone()
    out = torch.zeros(rows, heads * width, dtype=torch.float64)
    for row, place in enumerate(places.tolist()):
        turned = torch.view_as_complex(qkv_BX[row].double().view(-1, width // 2, 2)) * turns[place].to(torch.complex128)
        plain, turned = qkv_BX[row].double().view(-1, width), torch.view_as_real(turned).flatten(1)
        keys[row, :, place] = turned[heads : heads + kv_heads]
        values[row, :, place] = plain[heads + kv_heads :]
        served = [head for head, count in enumerate(queries) for _ in range(count)]
        for query, head in enumerate(served):
            scores = keys[row, head, : place + 1] @ turned[query] / width**0.5
            out[row, query * width : (query + 1) * width] = scores.softmax(0) @ values[row, head, : place + 1]
    return out, keys, values


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("queries", HEADS.values(), ids=HEADS)
def test_attention_of_a_step_is_that_of_float64(dtype: torch.dtype, width: int, queries: tuple[int, ...]) -> None:
    kv_heads, heads, places = len(queries), sum(queries), torch.tensor([0, 7, 40])
    keys, values = (numbers(3, kv_heads, 41, width, seed=seed).to(dtype) for seed in (1, 2))
    qkv_BX = numbers(3, (heads + 2 * kv_heads) * width, seed=3).to(dtype)
    turns = torch.polar(torch.ones(41, width // 2), 6 * numbers(41, width // 2, seed=4))
    expected, all_keys, all_values = attended(qkv_BX, keys, values, turns, places, queries)
    found = attend_step(qkv_BX, keys, values, turns, places, queries)
    # Queries and keys are rounded to the dtype after they are turned.
    near = NEAR[dtype] * (1 if dtype == torch.float32 else 4)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=near)
    torch.testing.assert_close(keys.double(), all_keys, rtol=2.0**-8, atol=NEAR[dtype])
    assert torch.equal(values.double(), all_values)


def test_a_program_does_again_what_was_called_on_what_stands_there_now() -> None:
    x, weight, more = numbers(2, 32), numbers(32, 32) / 6, torch.zeros(2, 32)
    program, ones = Program(), torch.ones(32)
    with recording(program):
        total, normed = add_norm(x, more, ones, 1e-5)
        y = native.products(normed, [weight])
    assert program.missing == set()
    x.copy_(numbers(2, 32, seed=9))
    more.fill_(1.0)
    program.run()
    fresh_total, fresh = add_norm(numbers(2, 32, seed=9), more, ones, 1e-5)
    assert torch.equal(total, fresh_total)
    assert torch.equal(y, native.products(fresh, [weight]))


def test_a_program_tells_what_it_would_leave_out() -> None:
    program = Program()
    with recording(program):
        torch.empty(3).view(3, 1).transpose(0, 1)
        torch.ones(3).add_(1)
    assert program.missing == {"aten.ones", "aten.add_"}
