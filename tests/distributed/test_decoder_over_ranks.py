"""The whole decoder, cut over ranks, against the uncut one: logits, loss and every gradient."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from model.cache import KVCache
from model.cuts import Weight, all_weights
from model.params import Params
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


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass: all logits, the loss, and the gradients by name."""

    logits: Tensor
    loss: float
    gradients: dict[str, Tensor]


def one_pass(mesh: Mesh, embedding_dim: EmbeddingDim) -> Pass:
    """The same seed draws the same uncut weights and tokens on any mesh."""
    torch.manual_seed(3)
    model = Transformer(PARAMS, mesh, embedding_dim)
    tokens = torch.randint(0, PARAMS.vocab_size, (3, 12), generator=torch.Generator().manual_seed(4))
    hidden = model(tokens[:, :-1])
    loss = vocab_parallel_cross_entropy(model.local_logits(hidden), tokens[:, 1:], mesh=mesh).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Pass(model.logits(hidden).detach(), loss.item(), gradients)


def cut_pass(world: World, embedding_dim: EmbeddingDim) -> Pass:
    return one_pass(world.mesh, embedding_dim)


def share_of(weight: Weight, tensor: Tensor, rank: int, mp: int) -> Tensor:
    own = weight.slice_of(rank, mp)
    return tensor if own is None or weight.cut is None else tensor.narrow(weight.cut, own.start, own.size)


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a part of the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_logits_loss_and_gradients_are_those_of_the_uncut_decoder(ranks: Pool, embedding_dim: EmbeddingDim) -> None:
    uncut = one_pass(Mesh(), embedding_dim)
    for rank, found in enumerate(ranks.run(cut_pass, embedding_dim)):
        # Sums over ranks are taken in another order: some units in the last place of float32, over two layers.
        assert distance(found.logits, uncut.logits) < 1e-5
        assert found.loss == pytest.approx(uncut.loss, rel=1e-6)
        for weight in all_weights(PARAMS, embedding_dim):
            wanted = share_of(weight, uncut.gradients[weight.name], rank, ranks.size)
            assert found.gradients[weight.name].shape == wanted.shape
            assert distance(found.gradients[weight.name], wanted) < 1e-5, weight.name


@torch.inference_mode()
def decoded(world: World) -> Tensor:
    """Logits of a batch of uneven rows, prefilled, then decoded token by token."""
    torch.manual_seed(3)
    model = Transformer(PARAMS, world.mesh, 1)
    tokens = torch.randint(0, PARAMS.vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))
    cache = KVCache(PARAMS, world.mesh, 2, 12, torch.float32, torch.device("cpu"))
    model(tokens[:, :6], cache)
    cache.advance([4, 6])
    found = []
    for step in range(5):
        token = torch.stack((tokens[0, 4 + step], tokens[1, 6 + step])).unsqueeze(1)
        found.append(model.logits(model(token, cache)[:, 0]))
        cache.advance([1, 1])
    return torch.stack(found, 1)


@torch.inference_mode()
def test_decoding_with_a_cache_gives_the_logits_of_a_pass_without_one(ranks: Pool) -> None:
    torch.manual_seed(3)
    model = Transformer(PARAMS, Mesh(), 1)
    tokens = torch.randint(0, PARAMS.vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))
    whole = model.logits(model(tokens))
    wanted = torch.stack((whole[0, 4:9], whole[1, 6:11]))
    for found in ranks.run(decoded):
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
