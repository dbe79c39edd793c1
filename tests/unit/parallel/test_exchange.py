"""Two ends of shared memory in one process: what its kernels write and count, and how a wait ends."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launcher.ranks.report import lost_peer
from parallel import Mesh
from parallel.collectives import all_reduce
from parallel.exchange import Exchange, memory_bytes
from parallel.kernels.building import library
from parallel.position import Recorder, read_position

pytestmark = pytest.mark.skipif(library() is None, reason="needs the C++ kernels")
TIMEOUT_S = 0.3


@pytest.fixture
def file() -> Iterator[int]:
    """Memory for two ranks."""
    file = os.memfd_create("test")
    os.ftruncate(file, memory_bytes(2))
    yield file
    os.close(file)


def ends(file: int, timeout_s: float = TIMEOUT_S) -> tuple[Exchange, Exchange]:
    pids = (os.getpid(), os.getpid())
    return Exchange(file, 0, pids, timeout_s), Exchange(file, 1, pids, timeout_s)


def sums_of(both: tuple[Exchange, Exchange], *numbers: float) -> list[list[float]]:
    """What each end gets of the sums of these numbers, one after the other; the second end's are tenfold."""
    found = list[list[float]]()

    def be(end: Exchange, factor: float) -> list[float]:
        tensors = [torch.tensor([number * factor]) for number in numbers]
        for tensor in tensors:
            end.all_reduce(tensor)
        return [float(tensor) for tensor in tensors]

    other = threading.Thread(target=lambda: found.append(be(both[1], 10)))
    other.start()
    own = be(both[0], 1)
    other.join()
    return [own, *found]


def test_both_ends_get_every_sum(file: int) -> None:
    assert sums_of(ends(file, 10), 1, 2, 3, 4, 5) == [[11, 22, 33, 44, 55]] * 2


def test_the_numbers_of_pieces_may_go_round(file: int) -> None:
    both = ends(file, 10)
    last = 2**32 - 3
    for rank, end in enumerate(both):
        end._state.piece = last
        ctypes.c_uint32.from_buffer(end._memory, 128 * rank).value = last
    assert sums_of(both, 1, 2, 3, 4, 5) == [[11, 22, 33, 44, 55]] * 2
    assert both[0]._state.piece == 2


def test_the_kernels_write_the_position_where_python_reads_it(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, path = Recorder(), tmp_path / "position"
    recorder.share(path)
    recorder.phase("decoding", 9, "token")
    recorder.step(4)
    with recorder.waits_in("word from rank 1"):
        pass
    monkeypatch.setattr("parallel.exchange.position", recorder)
    before = recorder.now()
    with pytest.raises(dist.DistBackendError):
        ends(file)[0].broadcast(torch.ones(1))
    found = read_position(path)
    assert str(found) == "decoding (token 4 of 9, in broadcast number 1)"
    assert found is not None
    assert found.changes == before.changes + 1
    recorder.step(5)
    with recorder.waits_in("all-reduce"):
        assert str(read_position(path)) == "decoding (token 5 of 9, in all-reduce number 2)"


def test_a_wait_ends_after_the_timeout_with_what_counts_as_a_lost_rank(file: int) -> None:
    own, _ = ends(file)
    since = time.monotonic()
    with pytest.raises(dist.DistBackendError, match=r"timed out waiting for rank 1 for 0\.3 s") as raised:
        own.all_reduce(torch.ones(1))
    # A slice more than asked for, and room for a busy machine.
    assert TIMEOUT_S <= time.monotonic() - since < 2
    assert lost_peer(raised.value)


def test_after_a_wait_that_was_given_up_no_collective_is_begun(file: int) -> None:
    own, _ = ends(file)
    with pytest.raises(dist.DistBackendError):
        own.all_reduce(torch.ones(1))
    with pytest.raises(AssertionError, match="out of step: rank 0 gave up a collective"):
        own.all_reduce(torch.ones(1))


def test_what_memory_cannot_carry_is_told_before(file: int) -> None:
    own, _ = ends(file)
    sum_of, highest = dist.ReduceOp.SUM, dist.ReduceOp.MAX
    assert own.sums(torch.ones(2), sum_of)
    assert own.sums(torch.ones(2, dtype=torch.bfloat16), sum_of)
    assert not own.sums(torch.ones(2), highest)
    assert not own.sums(torch.ones(2, dtype=torch.float64), sum_of)
    assert not own.carries(torch.ones(2, 3).t())
    assert not own.carries(torch.ones(2, device="meta"))


def test_a_mesh_of_one_rank_shares_nothing() -> None:
    assert Mesh().exchange is None
    assert all_reduce(torch.ones(1), Mesh()).item() == 1
