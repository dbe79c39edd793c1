"""Recorded steps are ordinary passes over one token, to the bit."""

import pytest
import torch
from torch import Tensor

from model.params import Params
from model.stepping import Step
from model.transformer import Transformer
from parallel import Mesh
from parallel.kernels.building import library

PARAMS = Params(
    dim=48,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    ffn_dim=80,
    vocab_size=50,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
PROMPTS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [9, 8, 7, 6]])
LENGTHS = [4, 2, 4]
needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler here: nothing is recorded")


def model_of(dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(3)
    return Transformer(PARAMS, Mesh()).to(dtype).requires_grad_(False).eval()


def hidden_states(model: Transformer, steps: int, *, recorded: bool, each: object = None) -> list[Tensor]:
    """Of some steps behind the prompts, the rows of different lengths. `each`: called before each step."""
    with torch.inference_mode():
        cache = model.new_cache(len(PROMPTS), 20)
        model(PROMPTS, cache)
        cache.lengths = list(LENGTHS)
        step, found = Step(model, cache), []
        for number in range(steps):
            if callable(each):
                each(number, cache)
            tokens = torch.tensor([[number + row] for row in range(len(cache.lengths))])
            found.append(step(tokens, watched=not recorded).clone())
            cache.advance([1] * len(cache.lengths))
        assert not recorded or library() is None or step._recorded is not None
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_are_passes_to_the_bit(dtype: torch.dtype) -> None:
    recorded = hidden_states(model_of(dtype), 6, recorded=True)
    passes = hidden_states(model_of(dtype), 6, recorded=False)
    assert all(torch.equal(one, other) for one, other in zip(recorded, passes, strict=True))


@needs_kernels
def test_rows_that_come_and_go_are_recorded_anew() -> None:
    def change(number: int, cache: object) -> None:
        if number == 3:
            cache.select([2, 0])  # type: ignore[attr-defined]
        if number == 4:
            cache.select([1, 0])  # type: ignore[attr-defined]

    recorded = hidden_states(model_of(), 7, recorded=True, each=change)
    passes = hidden_states(model_of(), 7, recorded=False, each=change)
    assert all(torch.equal(one, other) for one, other in zip(recorded, passes, strict=True))


@needs_kernels
def test_a_weight_that_is_replaced_is_used_from_then_on() -> None:
    def spoil_of(model: Transformer) -> object:
        def spoil(number: int, _cache: object) -> None:
            if number == 3:
                model.norm.weight.data = model.norm.weight.data * 2

        return spoil

    models = model_of(), model_of()
    recorded = hidden_states(models[0], 5, recorded=True, each=spoil_of(models[0]))
    passes = hidden_states(models[1], 5, recorded=False, each=spoil_of(models[1]))
    assert all(torch.equal(one, other) for one, other in zip(recorded, passes, strict=True))
    assert not torch.equal(recorded[4], hidden_states(model_of(), 5, recorded=True)[4])


@needs_kernels
def test_where_kernels_cannot_do_all_of_a_step_it_stays_a_pass() -> None:
    model = model_of(torch.float16)
    with torch.inference_mode():
        cache = model.new_cache(1, 8)
        model(PROMPTS[:1], cache)
        cache.advance([4])
        step = Step(model, cache)
        for token in (1, 2):
            expected = model(torch.tensor([[token]]), cache)
            assert torch.equal(step(torch.tensor([[token]])), expected)
            cache.advance([1])
    assert step._recorded is None


def test_a_cache_that_is_full_takes_no_more() -> None:
    model = model_of()
    with torch.inference_mode():
        cache = model.new_cache(3, 4)
        model(PROMPTS, cache)
        cache.advance([4, 4, 4])
        with pytest.raises(AssertionError, match="5 tokens in a cache of 4"):
            Step(model, cache)(torch.tensor([[1], [2], [3]]))


def test_gradients_reach_projections_behind_frozen_norms_in_short_sequences_too() -> None:
    """Few rows are the kernels' business, but not where somebody wants a gradient."""
    model = model_of()
    for name, weight in model.named_parameters():
        weight.requires_grad_("norm" not in name and "embeddings" not in name)
    model.logits(model(PROMPTS[:1])).sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []
