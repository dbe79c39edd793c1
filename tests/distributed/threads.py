"""Ranks as threads of one process: as many as a test wants, where sixteen interpreters would be dear.

What runs between the collectives is the same code; only what carries them differs.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import Mesh

T = TypeVar("T")
# A collective takes a millisecond; a thread that waits longer waits for one that has failed.
_LIMIT_S = 60.0


class _Table:
    """Where the threads lay down what the others are to see."""

    def __init__(self, size: int) -> None:
        self.laid: list[Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=_LIMIT_S)


class _ThreadGroup(dist.ProcessGroup):
    """A process group whose ranks are threads. Its methods are those that torch.distributed calls."""

    def __init__(self, rank: int, size: int, table: _Table) -> None:
        super().__init__(rank, size)
        self._own, self._table = rank, table

    def _all(self, x: Tensor) -> list[Tensor]:
        """Every rank's tensor, in order of rank."""
        self._table.laid[self._own] = x.detach().clone()
        self._table.barrier.wait()
        found = list(self._table.laid)
        self._table.barrier.wait()
        return found

    def allreduce(self, tensors: list[Tensor], opts: Any) -> None:  # type: ignore[override]
        parts = torch.stack(self._all(tensors[0]))
        tensors[0].copy_(parts.amax(0) if opts.reduceOp == dist.ReduceOp.MAX else parts.sum(0))

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], _opts: Any) -> None:  # type: ignore[override]
        for place, part in zip(outputs[0], self._all(inputs[0]), strict=True):
            place.copy_(part)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> None:  # type: ignore[override]
        tensors[0].copy_(self._all(tensors[0])[opts.rootRank])


def run_as_threads(size: int, body: Callable[[Mesh], T]) -> list[T]:
    """`body(mesh)` on each of `size` ranks; what it returns, in order of rank. Raises the first error of any."""
    table, results, errors = _Table(size), dict[int, T](), list[BaseException]()

    def be(rank: int) -> None:
        try:
            results[rank] = body(Mesh(rank, size, _ThreadGroup(rank, size, table) if size > 1 else None))
        except BaseException as error:
            # The others find the barrier broken, after this one.
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
