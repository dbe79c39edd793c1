"""Collectives between ranks of one machine through memory that they share: microseconds, where sockets take hundreds.

The work is done in kernels/exchange.cpp. docs/adr/0017-shared-memory-between-ranks.md
"""

import ctypes
import itertools
import logging
import mmap
import os
import secrets
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.kernels.building import library
from parallel.kernels.calls import call
from parallel.position import position

# A rank has two. Larger messages go in pieces; smaller pieces would cost more barriers, and larger ones fall out of
# the processor's cache.
SLOT_BYTES = 2**18
# As Shown in exchange.cpp, and the page that the slots begin on.
_SHOWN_BYTES, _PAGE = 128, 4096
# As Status in exchange.cpp; 0 and 1 are in calls.py.
_TIMED_OUT, _GONE, _OUT_OF_STEP = 2, 3, 4
# Room for the reason why there is no shared memory.
_REASON_BYTES = 256
_SUMMED = (torch.float32, torch.bfloat16)
_numbers = itertools.count(1)

log = logging.getLogger("shardrun")


class _State(ctypes.Structure):
    """As Exchange in exchange.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("memory", "position", "processes")),
        *((name, ctypes.c_int64) for name in ("slot_bytes", "timeout_ns")),
        *((name, ctypes.c_int32) for name in ("rank", "size")),
        *((name, ctypes.c_int64) for name in ("current", "done_bytes")),
        ("laid", ctypes.c_int32),
        ("piece", ctypes.c_uint32),
        ("waited_ns", ctypes.c_int64),
        ("missing", ctypes.c_int32),
    )


class _AllReduce(ctypes.Structure):
    _fields_ = (
        ("exchange", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("bfloat16", ctypes.c_int32),
    )


class _AllGather(ctypes.Structure):
    _fields_ = (
        ("exchange", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "out", "widths")),
        ("rows", ctypes.c_int64),
    )


class _Broadcast(ctypes.Structure):
    _fields_ = (
        ("exchange", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
    )


class Exchange:
    """One rank's end of the memory. `file`: a descriptor of it, no longer needed afterwards; `pids`: the ranks'
    processes, in order.

    Every rank must call the same collectives in the same order. Where a rank has ended, or does not come within
    `timeout_s`, the others raise what torch raises when another rank is lost.
    """

    def __init__(self, file: int, rank: int, pids: Sequence[int], timeout_s: float) -> None:
        self._pids, self._timeout_s = tuple(pids), timeout_s
        self._memory = mmap.mmap(file, memory_bytes(len(pids)))
        # Where the others are seen to end, even if they are never waited for or their numbers are given away again.
        processes: list[int] = []
        weakref.finalize(self, _close, processes)
        processes += (-1 if other == rank else os.pidfd_open(pid) for other, pid in enumerate(pids))
        # What the structure points to.
        self._start = ctypes.c_char.from_buffer(self._memory)
        self._processes, self._position = (ctypes.c_int32 * len(pids))(*processes), position.record
        self._state = _State(
            memory=ctypes.addressof(self._start),
            position=ctypes.addressof(self._position),
            processes=ctypes.addressof(self._processes),
            slot_bytes=SLOT_BYTES,
            timeout_ns=int(timeout_s * 1e9),
            rank=rank,
            size=len(pids),
        )
        self._address = ctypes.addressof(self._state)

    def sums(self, x: Tensor, op: dist.ReduceOp.RedOpType) -> bool:
        """Whether `all_reduce` can do this."""
        return op == dist.ReduceOp.SUM and x.dtype in _SUMMED and self.carries(x)

    def carries(self, x: Tensor) -> bool:
        """Whether `all_gather` and `broadcast` can do this."""
        return x.device.type == "cpu" and x.is_contiguous()

    def all_reduce(self, x: Tensor) -> None:
        """The sum of every rank's `x`, in place, where it `sums` it: added up in float32 in order of rank and rounded
        once, so the same to the bit on all. Collective."""
        about = _AllReduce(self._address, next(_numbers), x.data_ptr(), x.numel(), x.dtype is torch.bfloat16)
        self._call("shardrun_all_reduce", about, x)

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """[..., n] of each rank, n of `widths`, to [..., sum of widths] in order of rank. Collective."""
        out = x.new_empty((*x.shape[:-1], sum(widths)))
        row_bytes = _whole_numbers(tuple(width * x.element_size() for width in widths))
        about = _AllGather(
            self._address,
            next(_numbers),
            x.data_ptr(),
            out.data_ptr(),
            ctypes.addressof(row_bytes),
            x.shape[:-1].numel(),
        )
        self._call("shardrun_all_gather", about, x, out, row_bytes)
        return out

    def broadcast(self, x: Tensor) -> None:
        """Rank 0's `x` on every rank, in place. Collective."""
        self._call("shardrun_broadcast", _Broadcast(self._address, next(_numbers), x.data_ptr(), x.nbytes), x)

    def _call(self, name: str, about: ctypes.Structure, *kept: object) -> None:
        # It notes the position itself, since a recorded call runs without Python.
        call(name, about, self, *kept, explain=self._explain)

    def _explain(self, status: int) -> Exception:
        missing = self._state.missing
        if status == _TIMED_OUT:
            return dist.DistBackendError(f"timed out waiting for rank {missing} for {self._timeout_s:g} s")
        if status == _GONE:
            return dist.DistBackendError(f"rank {missing} (pid {self._pids[missing]}) has ended")
        assert status == _OUT_OF_STEP, status
        other = "calls another collective than this one" if missing != self._state.rank else "gave up a collective"
        return AssertionError(f"the ranks are out of step: rank {missing} {other}")


def memory_bytes(size: int) -> int:
    """Of the memory that so many ranks share. What is not used takes no room."""
    return -(-size * _SHOWN_BYTES // _PAGE) * _PAGE + size * 2 * SLOT_BYTES


@lru_cache(maxsize=64)
def _whole_numbers(numbers: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _close(files: Sequence[int]) -> None:
    for file in files:
        if file >= 0:
            os.close(file)


def make_exchange(group: dist.ProcessGroup, timeout_s: float) -> Exchange | None:
    """Shared memory for the ranks of a gloo group; None, on all alike, where any of them cannot have it, which rank 0
    logs. Collective.

    Nothing of it has a name that others could find, or that would be left behind: it ends with the last process.
    """
    library()  # it may have to be built first, for which nobody should wait in a collective
    rank, size, exchange, reason = dist.get_rank(group), dist.get_world_size(group), None, ""
    # Rank 0's is closed once all others have opened it.
    with ExitStack() as files:
        told = _everyones(torch.tensor(_offer(files, size if rank == 0 else 0)), group)
        try:
            exchange = _join(files, rank, told.tolist(), timeout_s)
        except (OSError, ValueError, AttributeError) as error:  # AttributeError: there is no such thing on this system
            reason = str(error) or type(error).__name__
        return exchange if _all_well(reason, group) else None


def _offer(files: ExitStack, size: int) -> list[int]:
    """This process, new memory for so many ranks (-1: none), its key, and whose numbers of processes these are."""
    key, file = secrets.randbits(62), -1
    if size:
        with suppress(OSError, AttributeError):
            file = os.memfd_create(_name(key))
            files.callback(os.close, file)
            os.ftruncate(file, memory_bytes(size))
    return [os.getpid(), file, key, _numbering()]


def _join(files: ExitStack, rank: int, offers: Sequence[Sequence[int]], timeout_s: float) -> Exchange:
    """The memory that rank 0 offers. OSError where it is none, or not there: rank 0 may be on another host."""
    pids, (file, *_), (key, *_), numberings = zip(*offers, strict=True)
    if library() is None:
        raise OSError("there are no C++ kernels")
    if file < 0:
        raise OSError("rank 0 cannot make any")
    if len(set(numberings)) > 1:
        raise OSError("the ranks do not see each other's processes")
    if rank != 0:
        path = f"/proc/{pids[0]}/fd/{file}"
        if _name(key) not in os.readlink(path):
            raise OSError(f"{path} is not what rank 0 shares")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        files.callback(os.close, file)
    return Exchange(file, rank, pids, timeout_s)


def _name(key: int) -> str:
    return f"shardrun-{key:016x}"


def _numbering() -> int:
    """The same for processes that know each other by the same numbers; 0 where that is not known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _all_well(reason: str, group: dist.ProcessGroup) -> bool:
    """Whether no rank has a reason against it; otherwise rank 0 logs the first. Collective."""
    said = reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0")
    everyones = _everyones(torch.frombuffer(bytearray(said), dtype=torch.uint8), group)
    for rank, told in enumerate(everyones):
        if told.any():
            if dist.get_rank(group) == 0:
                text = bytes(told.tolist()).rstrip(b"\0").decode(errors="replace")
                log.warning(
                    "note: the ranks talk over sockets, not memory, which takes longer: rank %d: %s", rank, text
                )
            return False
    return True


def _everyones(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[...] of each rank to [ranks, ...]. Collective."""
    parts = x.new_empty((dist.get_world_size(group), *x.shape))
    with position.waits_in("all-gather"):
        dist.all_gather(list(parts.unbind(0)), x, group=group)
    return parts
