"""Cross entropy over cut logits against torch's over whole ones, and against fairscale's."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel.cross_entropy import vocab_parallel_cross_entropy as fairscale_cross_entropy
from torch import Tensor

from parallel import World, vocab_parallel_cross_entropy
from tests.distributed.exact import own_part, require_close, require_equal, whole_numbers
from tests.distributed.pool import Pool
from tests.distributed.uneven import on_uneven_sizes, ragged

VOCABULARY = 16
# The sum of the exponentials is added up in another order: a few units in the last place of a float64.
FLOAT64_TOLERANCE = 1e-12
# The same in float32, whose unit is 6e-8; the inputs are equal, as a bfloat16 is a float32.
FLOAT32_TOLERANCE = 1e-6
# Gradients of at most 4 rounded to bfloat16's 8 bits: they may fall on either side of a half.
BFLOAT16_TOLERANCE = 2**-7


def example(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [2, 8, V], targets that meet every rank's share, and the gradient of each loss."""
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(2, 8, VOCABULARY, dtype=torch.float64, generator=generator)
    target = torch.randperm(VOCABULARY, generator=generator).view(2, 8)
    return logits, target, whole_numbers(2, 8, seed=4).double()


def loss_and_gradient(
    loss_of: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    # fairscale overwrites what it is given, which a leaf would not allow.
    loss = loss_of(leaf.clone(), target)
    (gradient,) = torch.autograd.grad(loss, leaf, weight)
    return loss.detach(), gradient


def uncut_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view_as(target)


def float64_is_the_uncut_one(world: World, scale: float) -> None:
    logits, target, weight = example(scale)
    wanted_loss, wanted_gradient = loss_and_gradient(uncut_cross_entropy, logits, target, weight)
    wanted_gradient = own_part(wanted_gradient, -1, world.mesh)
    for loss_of in (vocab_parallel_cross_entropy, fairscale_cross_entropy):
        loss, gradient = loss_and_gradient(loss_of, own_part(logits, -1, world.mesh), target, weight)
        require_close(f"{loss_of.__module__}: loss", loss, wanted_loss, FLOAT64_TOLERANCE)
        require_close(f"{loss_of.__module__}: gradient", gradient, wanted_gradient, FLOAT64_TOLERANCE)


def uneven_float64_is_the_uncut_one(world: World, size: int, scale: float) -> None:
    mesh, shares = world.mesh, ragged(size, world.mesh.size)
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(2, size, size, dtype=torch.float64, generator=generator)
    # Every id of the vocabulary is a target, the first and last of each share too.
    target, weight = torch.randperm(2 * size, generator=generator).view(2, size) % size, whole_numbers(2, size).double()
    wanted_loss, wanted_gradient = loss_and_gradient(uncut_cross_entropy, logits, target, weight)

    def loss_of(own_logits: Tensor, target: Tensor) -> Tensor:
        return vocab_parallel_cross_entropy(own_logits, target, shares=shares)

    loss, gradient = loss_and_gradient(loss_of, own_part(logits, -1, mesh, shares), target, weight)
    require_close("loss", loss, wanted_loss, FLOAT64_TOLERANCE)
    require_close("gradient", gradient, own_part(wanted_gradient, -1, mesh, shares), FLOAT64_TOLERANCE)


def bfloat16_gives_a_float32_loss(world: World) -> None:
    logits, target, weight = example(3.0)
    half, weight = logits.bfloat16(), weight.float()
    wanted_loss, wanted_gradient = loss_and_gradient(uncut_cross_entropy, half.float(), target, weight)
    own = own_part(half, -1, world.mesh)
    loss, gradient = loss_and_gradient(vocab_parallel_cross_entropy, own, target, weight)
    require_close("loss", loss, wanted_loss, FLOAT32_TOLERANCE)
    assert gradient.dtype == torch.bfloat16, gradient.dtype
    require_close("gradient", gradient.float(), own_part(wanted_gradient, -1, world.mesh), BFLOAT16_TOLERANCE)


def leaves_the_logits_alone(world: World) -> None:
    logits, target, weight = example(3.0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        own = own_part(logits, -1, world.mesh).to(dtype).requires_grad_()
        before = own.detach().clone()
        loss = vocab_parallel_cross_entropy(own, target)
        loss.backward(weight.to(loss.dtype))
        require_equal("logits", own.detach(), before)


def takes_transposed_logits(world: World) -> None:
    logits, target, _ = example(3.0)
    own = own_part(logits, -1, world.mesh)
    transposed = own.transpose(0, 1).contiguous().transpose(0, 1)
    assert not transposed.is_contiguous()
    require_equal("loss", vocab_parallel_cross_entropy(transposed, target), vocab_parallel_cross_entropy(own, target))


# A scale of 1,000 overflows an exponential that is taken before the highest logit is subtracted.
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_loss_and_gradient_are_those_of_the_uncut_cross_entropy_and_of_fairscale(ranks: Pool, scale: float) -> None:
    ranks.run(float64_is_the_uncut_one, scale)


@on_uneven_sizes
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_over_a_vocabulary_cut_unevenly_loss_and_gradient_are_the_uncut_ones(
    ranks: Pool, size: int, scale: float
) -> None:
    ranks.run(uneven_float64_is_the_uncut_one, size, scale)


def test_half_precision_logits_give_a_float32_loss_and_a_half_precision_gradient(ranks: Pool) -> None:
    ranks.run(bfloat16_gives_a_float32_loss)


def test_the_logits_are_left_as_they_were(ranks: Pool) -> None:
    ranks.run(leaves_the_logits_alone)


def test_logits_need_not_be_contiguous(ranks: Pool) -> None:
    ranks.run(takes_transposed_logits)
