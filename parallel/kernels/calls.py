"""Calling the C++ kernels, and recording the calls so that they can be made again without Python."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from parallel.kernels.building import library

# What a kernel says that has not been able to end yet: it is to be called again. Other numbers are `explain`ed.
DONE, NOT_YET = 0, 1
_ALLOCATIONS = frozenset({"aten.empty", "aten.new_empty", "aten.empty_like", "aten.empty_strided"})
# Turns what a kernel said into an error; set by whoever calls such kernels.
Explain = Callable[[int], Exception]


class _Call(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


class Program:
    """Calls in their order, with the memory that they use."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._explains: list[Explain | None] = []
        self._kept: list[object] = []
        self._table: Any = None
        # Operations that were not recorded: a program is only good without any.
        self.missing: set[str] = set()

    def add(self, kernel: Any, arguments: ctypes.Structure, kept: tuple[object, ...], explain: Explain | None) -> None:
        """Put a call behind the others. `kept`: whatever `arguments` points to."""
        address = ctypes.cast(kernel, ctypes.c_void_p).value
        self._calls.append(_Call(address, ctypes.addressof(arguments)))
        self._explains.append(explain)
        self._kept.append((arguments, kept))

    def run(self) -> None:
        """Make all calls again, on what now stands in their memory."""
        kernels = library()
        assert kernels is not None, "what was recorded has been called once"
        if self._table is None:
            self._table = (_Call * len(self._calls))(*self._calls)
        at = ctypes.c_int32(0)
        while status := kernels.shardrun_run(self._table, len(self._calls), ctypes.byref(at)):
            if status != NOT_YET:
                raise _error(self._explains[at.value], status)


_recording: list[Program] = []


class _Others(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations of torch that do more than look at memory in another way, or get some."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch loads its compiler at the first operation: two seconds and 60 MB.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if not (func.is_view or name in _ALLOCATIONS):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def recording(program: Program) -> Iterator[None]:
    """The calls made in the body are made, and put into `program`; what else torch does there is noted in
    `program.missing`, since running the program does not do it."""
    _recording.append(program)
    try:
        with _Others() as others:
            yield
        program.missing = others.seen
    finally:
        _recording.pop()


def call(name: str, arguments: ctypes.Structure, *kept: object, explain: Explain | None = None) -> None:
    """Call a kernel until it is done. `kept`: tensors that `arguments` points to."""
    kernels = library()
    assert kernels is not None, "whoever calls has asked whether there are kernels"
    kernel = getattr(kernels, name)
    if _recording:
        _recording[-1].add(kernel, arguments, kept, explain)
    while status := kernel(ctypes.byref(arguments)):
        if status != NOT_YET:
            raise _error(explain, status)


def _error(explain: Explain | None, status: int) -> Exception:
    return AssertionError(f"a kernel ended with {status}") if explain is None else explain(status)
