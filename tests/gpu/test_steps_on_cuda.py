"""On a GPU: a decoding step through Triton's kernels and a captured graph, against plain torch. The kernels alone are
in tests/unit/parallel/kernels, whose tests run compiled where there is a GPU.

.venv/bin/python -m pytest -m gpu
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from model.capturing import CapturedStep, capturable, make_step
from model.packing import pack
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh
from parallel.kernels.quantised import Int4Weight, Int8Weight

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

PARAMS = Params(
    dim=512,
    n_layers=3,
    n_heads=8,
    n_kv_heads=2,
    ffn_dim=1376,
    vocab_size=1000,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    rope_reason="",
)
PROMPT, STEPS, PLACES = 70, 12, 96


def made(dtype: torch.dtype) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(PARAMS, Mesh()).to("cuda", dtype)
    model.requires_grad_(False)
    return model


def decode(model: Transformer, rows: int, captured: bool, steps: int = STEPS) -> Tensor:
    """Hidden states of each step [steps, B, D], float64 on the CPU; the first row's prompt is shorter."""
    prompts = torch.arange(rows * PROMPT, device="cuda").view(rows, PROMPT) % PARAMS.vocab_size
    cache, found = model.new_cache(rows, PLACES), []
    with torch.inference_mode():
        model(prompts, cache)
        cache.advance([PROMPT - 30] + [PROMPT] * (rows - 1))
        step = make_step(model, cache) if captured else model
        assert isinstance(step, CapturedStep) is captured
        for number in range(steps):
            tokens = torch.arange(number, number + rows, device="cuda").unsqueeze(1)
            hidden = step(tokens) if captured else model(tokens, cache)
            found.append(hidden.squeeze(1).double().cpu())
            cache.advance([1] * rows)
    return torch.stack(found)


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_captured_steps_are_ordinary_ones_to_the_bit(rows: int, dtype: torch.dtype) -> None:
    model = made(dtype)
    pack(model)
    assert capturable(model, rows)
    assert torch.equal(decode(model, rows, captured=True), decode(model, rows, captured=False))


@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("rows", [1, 9])
def test_quantised_steps_are_those_of_the_weights_that_they_stand_for(
    kind: type[Int8Weight | Int4Weight], rows: int
) -> None:
    model, plain = made(torch.float32), made(torch.float32)
    for block, plain_block in zip(model.layers, plain.layers, strict=True):
        for name, layer in list(block.named_modules()):
            if hasattr(layer, "weight") and "norm" not in name:
                quantised = kind.of(layer.weight)
                plain_block.get_submodule(name).weight.copy_(quantised.dequantised(torch.float32))
                del layer.weight
                layer.weight = quantised
    # Sums of a thousand float32 numbers of about 1, in another order, through three layers.
    torch.testing.assert_close(decode(model, rows, True), decode(plain, rows, False), rtol=0, atol=5e-4)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_a_captured_step_waits_for_nothing_and_takes_no_memory() -> None:
    model = made(torch.bfloat16)
    cache = model.new_cache(2, PLACES)
    step = make_step(model, cache)
    tokens = torch.tensor([[1], [2]], device="cuda")
    for _ in range(3):
        step(tokens)
        cache.advance([1, 1])
    held = torch.cuda.memory_allocated()
    with no_waiting():
        for _ in range(5):
            step(tokens)
            cache.advance([1, 1])
    assert torch.cuda.memory_allocated() == held


def test_packing_frees_the_originals_and_changes_no_number() -> None:
    model = made(torch.bfloat16)
    before = {name: weight.cpu() for name, weight in model.state_dict().items()}
    held = torch.cuda.memory_allocated()
    pack(model)
    # Sizes of allocations are rounded up, to half a KiB each.
    assert abs(torch.cuda.memory_allocated() - held) <= 512 * 5 * PARAMS.n_layers
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].cpu(), before[name]) for name in before)


def test_steps_on_a_gpu_are_those_on_a_cpu() -> None:
    model = made(torch.float32)
    on_gpu = decode(model, 2, captured=True)
    model = model.double().cpu()
    # The rotary table was made for the GPU.
    model._turns_Sh = None
    cache, found = model.new_cache(2, PLACES), []
    with torch.inference_mode():
        model(torch.arange(2 * PROMPT).view(2, PROMPT) % PARAMS.vocab_size, cache)
        cache.advance([PROMPT - 30, PROMPT])
        for number in range(STEPS):
            found.append(model(torch.tensor([[number], [number + 1]]), cache).squeeze(1))
            cache.advance([1, 1])
    # Sums of a thousand float32 numbers of about 1, through three layers; torch may use TF32 nowhere by default.
    torch.testing.assert_close(on_gpu, torch.stack(found), rtol=0, atol=2e-4)
