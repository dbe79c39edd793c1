"""The whole decoder, cut over ranks, against the uncut one: logits, loss and every gradient."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from model.cache import KVCache
from model.cuts import Weight, all_weights
from model.params import Params
from model.split import split_of
from model.transformer import Transformer
from parallel import Mesh, World, vocab_parallel_cross_entropy
from tests.distributed.pool import Pool

PARAMS = Params(
    dim=32,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    ffn_dim=48,
    vocab_size=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
EmbeddingDim = Literal[0, 1]
# 3 ranks cut everything unevenly; with 2 KV heads or 1, ranks share them: 4 ranks evenly, 3 ranks not.
on_any_ranks = pytest.mark.parametrize("ranks", [1, 2, 3, 4], indirect=True, ids="{}-ranks".format)
on_any_kv_heads = pytest.mark.parametrize("n_kv_heads", [4, 2, 1], ids="{}-kv-heads".format)


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass: all logits, the loss, and the gradients by name."""

    logits: Tensor
    loss: float
    gradients: dict[str, Tensor]


def one_pass(mesh: Mesh, embedding_dim: EmbeddingDim, n_kv_heads: int) -> Pass:
    """The same seed draws the same uncut weights and tokens on any mesh."""
    torch.manual_seed(3)
    model = Transformer(replace(PARAMS, n_kv_heads=n_kv_heads), mesh, embedding_dim)
    tokens = torch.randint(0, PARAMS.vocab_size, (3, 12), generator=torch.Generator().manual_seed(4))
    hidden = model(tokens[:, :-1])
    logits, target = model.local_logits(hidden), tokens[:, 1:]
    loss = vocab_parallel_cross_entropy(logits, target, mesh=mesh, shares=model.vocabulary).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Pass(model.logits(hidden).detach(), loss.item(), gradients)


def cut_pass(world: World, embedding_dim: EmbeddingDim, n_kv_heads: int) -> Pass:
    return one_pass(world.mesh, embedding_dim, n_kv_heads)


def put_together(weight: Weight, params: Params, parts: list[Tensor]) -> Tensor:
    """The uncut gradient from those of all ranks; of numbers that stand on several ranks, the sum."""
    if weight.cut is None:
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]
    whole = torch.zeros(weight.shape)
    for own, part in zip(weight.slices(split_of(params, len(parts))), parts, strict=True):
        whole.narrow(weight.cut, own.start, own.size).add_(part)
    return whole


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a part of the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@on_any_ranks
@on_any_kv_heads
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_logits_loss_and_gradients_are_those_of_the_uncut_decoder(
    ranks: Pool, embedding_dim: EmbeddingDim, n_kv_heads: int
) -> None:
    params = replace(PARAMS, n_kv_heads=n_kv_heads)
    uncut = one_pass(Mesh(), embedding_dim, n_kv_heads)
    passes: list[Pass] = ranks.run(cut_pass, embedding_dim, n_kv_heads)
    for found in passes:
        # Sums over ranks are taken in another order: some units in the last place of float32, over two layers.
        assert distance(found.logits, uncut.logits) < 1e-5
        assert found.loss == pytest.approx(uncut.loss, rel=1e-6)
    for weight in all_weights(params, embedding_dim):
        wanted, name = uncut.gradients[weight.name], weight.name
        parts = [found.gradients[name] for found in passes]
        shapes = [weight.shape_of(own) for own in weight.slices(split_of(params, ranks.size))]
        assert [tuple(part.shape) for part in parts] == shapes
        assert distance(put_together(weight, params, parts), wanted) < 1e-5, name
        # Each rank by itself, where nobody else holds what it holds.
        if ranks.size <= n_kv_heads or name.split(".")[-2] not in ("wk", "wv"):
            for own, part in zip(weight.slices(split_of(params, ranks.size)), parts, strict=True):
                assert distance(part, wanted.narrow(weight.cut or 0, own.start, own.size)) < 1e-5, name


@torch.inference_mode()
def decoded(world: World, n_kv_heads: int) -> Tensor:
    """Logits of a batch of uneven rows, prefilled, then decoded token by token."""
    torch.manual_seed(3)
    params = replace(PARAMS, n_kv_heads=n_kv_heads)
    model = Transformer(params, world.mesh, 1)
    tokens = torch.randint(0, PARAMS.vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))
    cache = KVCache(params, world.mesh, 2, 12, torch.float32, torch.device("cpu"))
    model(tokens[:, :6], cache)
    cache.advance([4, 6])
    found = []
    for step in range(5):
        token = torch.stack((tokens[0, 4 + step], tokens[1, 6 + step])).unsqueeze(1)
        found.append(model.logits(model(token, cache)[:, 0]))
        cache.advance([1, 1])
    return torch.stack(found, 1)


@on_any_ranks
@on_any_kv_heads
@torch.inference_mode()
def test_decoding_with_a_cache_gives_the_logits_of_a_pass_without_one(ranks: Pool, n_kv_heads: int) -> None:
    torch.manual_seed(3)
    model = Transformer(replace(PARAMS, n_kv_heads=n_kv_heads), Mesh(), 1)
    tokens = torch.randint(0, PARAMS.vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))
    whole = model.logits(model(tokens))
    wanted = torch.stack((whole[0, 4:9], whole[1, 6:11]))
    for found in ranks.run(decoded, n_kv_heads):
        # Another order of summation, as above.
        assert distance(found, wanted) < 1e-5


def generates_then_trains(world: World) -> bool:
    torch.manual_seed(3)
    model = Transformer(PARAMS, world.mesh, 1)
    tokens = torch.randint(0, PARAMS.vocab_size, (2, 6), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        model(tokens)
    model.logits(model(tokens)).sum().backward()  # type: ignore[no-untyped-call]
    return all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_has_generated_can_be_trained(ranks: Pool) -> None:
    assert all(ranks.run(generates_then_trains))
