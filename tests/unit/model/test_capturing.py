"""A step that is run again on what stands in the same memory gives what an ordinary pass gives. What CUDA captures is
run here as it is; tests/gpu has the same over real graphs."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.capturing import CapturedStep, make_step
from model.params import Params
from model.stepping import Step
from model.transformer import Transformer
from parallel import Mesh
from parallel.kernels.building import library

pytestmark = pytest.mark.skipif(library() is None, reason="without kernels a step is another one at each length")

PARAMS = Params(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    ffn_dim=48,
    vocab_size=40,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    rope_reason="",
)


class Again:
    """A graph that calls the function again."""

    captured = 0

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.replay = run
        Again.captured += 1


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(3)
    model = Transformer(PARAMS, Mesh())
    model.requires_grad_(False)
    return model


@torch.inference_mode()
def test_captured_steps_give_what_ordinary_passes_give(model: Transformer) -> None:
    Again.captured = 0
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9]])
    plain_cache, cache = model.new_cache(2, 16), model.new_cache(2, 16)
    step = CapturedStep(model, cache, Again)
    for one in (plain_cache, cache):
        model(prompts, one)
        one.advance([3, 2])
    for number in range(8):
        if number == 4:
            # Other rows in other memory: what was captured is of no use any more.
            plain_cache.select([1, 0, 1])
            cache.select([1, 0, 1])
        rows = 2 if number < 4 else 3
        tokens = torch.arange(number, number + rows).unsqueeze(1)
        found = step(tokens, watched=number == 6)
        torch.testing.assert_close(found, model(tokens, plain_cache), rtol=0, atol=0)
        for one in (plain_cache, cache):
            one.advance([1] * rows)
    assert Again.captured == 2


@torch.inference_mode()
def test_what_cannot_be_captured_is_said_once_and_run_as_it_is(
    model: Transformer, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: Callable[[], Tensor]) -> Again:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain_cache, cache = model.new_cache(1, 8), model.new_cache(1, 8)
    step = CapturedStep(model, cache, refuse)
    with caplog.at_level(logging.WARNING):
        for token in (3, 5, 7):
            tokens = torch.tensor([[token]])
            torch.testing.assert_close(step(tokens), model(tokens, plain_cache), rtol=0, atol=0)
            plain_cache.advance([1])
            cache.advance([1])
    assert [record.message for record in caplog.records] == [
        "note: decoding is slower, since a step could not be captured: operation not permitted when stream is capturing"
    ]


def test_on_a_cpu_a_step_is_recorded_instead(model: Transformer) -> None:
    assert isinstance(make_step(model, model.new_cache(1, 8)), Step)
