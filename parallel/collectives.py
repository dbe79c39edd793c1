"""Collectives over a mesh, and their counterparts for autograd.

Every rank of the mesh must call each of these, in the same order. On a mesh of size 1 they do nothing. Where its ranks
share memory (`mesh.exchange`) they use that for what it can do, and the process group for the rest.
Pairs of forward and backward (Megatron-LM, arXiv:1909.08053, section 3):

| function | forward | backward |
|---|---|---|
| copy_to_ranks | identity | all-reduce |
| reduce_from_ranks | all-reduce | identity |
| scatter_to_ranks | this rank's slice of the last dimension | all-gather |
| gather_from_ranks | all-gather on the last dimension | this rank's slice |

`shares`: what each rank owns of the last dimension, in order and without a gap; None where it goes evenly.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel.mesh import Mesh
from parallel.position import position
from parallel.slices import Slice, share

Shares = Sequence[Slice] | None


def all_reduce(x: Tensor, mesh: Mesh, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The sum (or `op`) of every rank's `x`, in place where `x` is contiguous. Collective."""
    if mesh.alone:
        return x
    x = x.contiguous()
    if mesh.exchange is not None and mesh.exchange.sums(x, op):
        mesh.exchange.all_reduce(x)
        return x
    with position.waits_in("all-reduce"):
        dist.all_reduce(x, op=op, group=mesh.group)
    return x


def all_gather_last_dim(x: Tensor, mesh: Mesh, shares: Shares = None) -> Tensor:
    """[..., n] of each rank to [..., N] in order of rank. Collective."""
    if mesh.alone:
        return x
    sizes = [own.size for own in shares] if shares is not None else [x.shape[-1]] * mesh.size
    if mesh.exchange is not None and x.device.type == "cpu":
        return mesh.exchange.all_gather(x.contiguous(), sizes)
    widest = max(sizes)
    # Backends want the same size of every rank: narrower ones are filled up, and the filling is dropped.
    padded = F.pad(x, (0, widest - x.shape[-1])).contiguous()
    parts = padded.new_empty((mesh.size, *padded.shape))
    with position.waits_in("all-gather"):
        dist.all_gather(list(parts.unbind(0)), padded, group=mesh.group)
    if len(set(sizes)) == 1:
        return parts.movedim(0, -2).flatten(-2)
    return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], -1)


def all_gather_first_dim(x: Tensor, mesh: Mesh) -> Tensor:
    """[n, ...] of each rank, n the same for all, to [N, ...] in order of rank. Collective."""
    if mesh.alone:
        return x
    if mesh.exchange is not None and x.device.type == "cpu":
        everyones = mesh.exchange.all_gather(x.contiguous().view(-1), [x.numel()] * mesh.size)
        return everyones.view(mesh.size * len(x), *x.shape[1:])
    parts = x.new_empty((mesh.size, *x.shape))
    with position.waits_in("all-gather"):
        dist.all_gather(list(parts.unbind(0)), x.contiguous(), group=mesh.group)
    return parts.flatten(0, 1)


def slice_last_dim(x: Tensor, mesh: Mesh, shares: Shares = None) -> Tensor:
    """[..., N] to this rank's [..., n]. Needs no communication."""
    own = share(x.shape[-1], mesh.rank, mesh.size, "columns") if shares is None else shares[mesh.rank]
    return x[..., own.start : own.stop].contiguous()


def broadcast(x: Tensor, mesh: Mesh) -> Tensor:
    """Rank 0's `x` on every rank, in place. Collective."""
    if mesh.alone:
        return x
    if mesh.exchange is not None and mesh.exchange.carries(x):
        mesh.exchange.broadcast(x)
        return x
    with position.waits_in("broadcast"):
        dist.broadcast(x, group=mesh.group, group_src=0)
    return x


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh) -> Tensor:
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # A clone: autograd may hand the same gradient to another branch.
        return all_reduce(grads[0].clone(), ctx.mesh), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh) -> Tensor:
        return all_reduce(x.clone(), mesh)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh, shares: Shares) -> Tensor:
        ctx.mesh, ctx.shares = mesh, shares
        return slice_last_dim(x, mesh, shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return all_gather_last_dim(grads[0], ctx.mesh, ctx.shares), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh, shares: Shares) -> Tensor:
        ctx.mesh, ctx.shares = mesh, shares
        return all_gather_last_dim(x, mesh, shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return slice_last_dim(grads[0], ctx.mesh, ctx.shares), None, None


def _recording(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def copy_to_ranks(x: Tensor, mesh: Mesh) -> Tensor:
    """`x` as it is; its gradient is summed over the ranks."""
    return x if mesh.alone or not _recording(x) else _Copy.apply(x, mesh)  # type: ignore[no-untyped-call]


def reduce_from_ranks(x: Tensor, mesh: Mesh) -> Tensor:
    """The sum of every rank's `x`. Without autograd `x` itself is overwritten."""
    if mesh.alone:
        return x
    return _Reduce.apply(x, mesh) if _recording(x) else all_reduce(x, mesh)  # type: ignore[no-untyped-call]


def scatter_to_ranks(x: Tensor, mesh: Mesh, shares: Shares = None) -> Tensor:
    """This rank's slice of the last dimension."""
    if mesh.alone:
        return x
    if not _recording(x):
        return slice_last_dim(x, mesh, shares)
    return _Scatter.apply(x, mesh, shares)  # type: ignore[no-untyped-call, no-any-return]


def gather_from_ranks(x: Tensor, mesh: Mesh, shares: Shares = None) -> Tensor:
    """Every rank's `x`, side by side on the last dimension."""
    if mesh.alone:
        return x
    if not _recording(x):
        return all_gather_last_dim(x, mesh, shares)
    return _Gather.apply(x, mesh, shares)  # type: ignore[no-untyped-call, no-any-return]
