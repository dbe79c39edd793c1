"""The Triton kernels of a decoding step against plain torch: on a GPU compiled, elsewhere in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

triton_steps = pytest.importorskip("parallel.kernels.triton_steps", exc_type=ImportError)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.gpu if DEVICE.type == "cuda" else []

DTYPES = [torch.float32, torch.bfloat16]
# Some dozen float32 roundings of numbers of about 1; and the bits of bfloat16, which the interpreter cuts to instead of
# rounding: keys that are cut move scores a little too.
NEAR = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (2.0**-6, 2.0**-6)}


def numbers(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def require_near(found: Tensor, expected: Tensor) -> None:
    rtol, atol = NEAR[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adds", [False, True])
def test_add_norm_is_that_of_float64(adds: bool, dtype: torch.dtype) -> None:
    x, weight = numbers(3, 1, 100).to(dtype), numbers(100, seed=6).to(dtype)
    more = numbers(3, 1, 100, seed=7).to(dtype) if adds else None
    total = x.double() if more is None else x.double() + more.double()
    y = triton_steps.add_norm(x, more, weight, 1e-5)
    require_near(x, total)
    require_near(y, F.rms_norm(x.double(), (100,), weight.double(), 1e-5))


def turned(x_BnH: Tensor, angles_Bh: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_BnH.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles_Bh), angles_Bh).unsqueeze(1)).flatten(-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "width", "max_places", "places"),
    [
        # One part; the first token of a row; a full cache.
        ((1, 1), 8, 40, (0, 39, 17)),
        # Several parts, of which a short row leaves some empty.
        ((4,), 16, 200, (3, 199, 64)),
        # Heads that are cut unevenly, of a width that is no power of two.
        ((3, 2), 12, 70, (69, 1, 0)),
    ],
    ids=["one part", "several parts", "uneven queries"],
)
def test_attention_of_a_new_token_is_that_of_float64(
    queries: tuple[int, ...], width: int, max_places: int, places: tuple[int, ...], dtype: torch.dtype
) -> None:
    rows, kv_heads, heads = len(places), len(queries), sum(queries)
    qkv = numbers(rows, heads + 2 * kv_heads, width).to(dtype)
    keys, values = (numbers(rows, kv_heads, max_places, width, seed=seed).to(dtype) for seed in (1, 2))
    angles = numbers(max_places, width // 2, seed=3)
    before = keys.clone(), values.clone()
    places_B = torch.tensor(places, device=DEVICE)
    turns = torch.view_as_real(torch.polar(torch.ones_like(angles), angles))
    counts = triton_steps.queries_on(DEVICE, queries)
    found = triton_steps.attend(qkv.flatten(1), keys, values, turns, places_B, counts).unflatten(1, (heads, width))

    q, k, v = qkv.split((heads, kv_heads, kv_heads), 1)
    at_places = angles.double()[places_B]
    q, k = turned(q, at_places), turned(k, at_places)
    for row, place in enumerate(places):
        require_near(keys[row, :, place], k[row])
        assert torch.equal(values[row, :, place], v[row])
        others = torch.arange(max_places, device=DEVICE) != place
        for after, old in zip((keys, values), before, strict=True):
            assert torch.equal(after[row, :, others], old[row, :, others])
        served = [head for head, count in enumerate(queries) for _ in range(count)]
        seen = keys[row, served, : place + 1].double(), values[row, served, : place + 1].double()
        expected = F.scaled_dot_product_attention(q[row].unsqueeze(1), *seen).squeeze(1)
        require_near(found[row], expected)


def test_a_spoilt_key_spoils_what_attends_to_it_and_nothing_else() -> None:
    qkv = numbers(1, 4 * 8)
    keys, values = numbers(1, 1, 70, 8), numbers(1, 1, 70, 8)
    keys[0, 0, 30] = float("nan")
    turns = torch.zeros(70, 4, 2, device=DEVICE)
    counts = triton_steps.queries_on(DEVICE, (2,))
    for place, finite in ((29, True), (31, False)):
        places_B = torch.tensor([place], device=DEVICE)
        found = triton_steps.attend(qkv, keys.clone(), values.clone(), turns, places_B, counts)
        assert bool(found.isfinite().all()) is finite
