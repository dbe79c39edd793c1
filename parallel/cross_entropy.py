"""Cross entropy over logits that are cut along the vocabulary: no rank ever holds them whole.

Drop-in for fairscale 0.4.13's `fairscale.nn.model_parallel.cross_entropy`, but for these: the logits
are left as they were (fairscale overwrites them), half-precision logits give a float32 loss, and it
works at size 1 without a process group.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.collectives import Shares, all_reduce
from parallel.mesh import Mesh, current_mesh


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, mesh: Mesh, first: int) -> Tensor:
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        elsewhere = (target < first) | (target >= first + logits.shape[-1])
        local_target = (target - first).masked_fill(elsewhere, 0).unsqueeze(-1)

        highest = all_reduce(wide.amax(-1), mesh, dist.ReduceOp.MAX)
        shifted = wide - highest.unsqueeze(-1)
        wanted = shifted.gather(-1, local_target).squeeze(-1).masked_fill(elsewhere, 0)
        exps = shifted.exp_()
        wanted, total = all_reduce(torch.stack((wanted, exps.sum(-1))), mesh).unbind(0)

        ctx.save_for_backward(exps.div_(total.unsqueeze(-1)), local_target, elsewhere)
        ctx.logits_dtype = logits.dtype
        return total.log() - wanted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        softmax, local_target, elsewhere = ctx.saved_tensors
        hit = (~elsewhere).to(softmax.dtype).unsqueeze(-1)
        grad = softmax.scatter_add(-1, local_target, -hit) * grads[0].unsqueeze(-1)
        return grad.to(ctx.logits_dtype), None, None, None


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor, target: Tensor, *, mesh: Mesh | None = None, shares: Shares = None
) -> Tensor:
    """-log softmax(logits)[target] for each target. Collective.

    vocab_parallel_logits: [..., V / size], this rank's share; target: [...] ids of the whole
    vocabulary, the same on every rank; `shares`: what each rank owns of the vocabulary, None where that is
    the same for all. Returns [...], the same on every rank.
    """
    mesh = mesh or current_mesh()
    first = mesh.rank * vocab_parallel_logits.shape[-1] if shares is None else shares[mesh.rank].start
    loss = _VocabParallelCrossEntropy.apply(vocab_parallel_logits, target, mesh, first)  # type: ignore[no-untyped-call]
    return loss  # type: ignore[no-any-return]
