"""What a rank makes of its own failure: whose fault it is, which exit code, and what is only the echo of another."""

from pathlib import Path

import pytest

from launcher.ranks.report import Failure, Stopped
from parallel.errors import PeerFailedError, RankFailedError, RefusedError
from parallel.position import position

_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "72 bytes. Error code 12 (Cannot allocate memory)\nframe #0: ..."
)


@pytest.fixture(autouse=True)
def _decoding() -> None:
    position.phase("decoding")
    position.step(5)


@pytest.mark.parametrize(
    ("error", "code", "cause", "text"),
    [
        (RefusedError("no such folder"), 2, True, "no such folder"),
        (RankFailedError("rank 1 broke"), 3, True, "rank 1 broke"),
        (PeerFailedError("rank 0 failed while loading"), 3, False, "rank 0 failed while loading"),
        (Stopped(15), 143, False, "stopped by SIGTERM"),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234"),
            3,
            False,
            "rank 1 lost contact with another rank while decoding (step 5): Connection closed by peer [127.0.0.1]:1234",
        ),
        (
            RuntimeError("[x.cc:1] Timed out waiting 3000ms for send operation to complete"),
            3,
            False,
            "rank 1 lost contact with another rank while decoding (step 5): Timed out waiting 3000ms for send "
            "operation to complete",
        ),
        (
            RuntimeError("Wait timeout"),
            3,
            False,
            "rank 1 lost contact with another rank while decoding (step 5): Wait timeout",
        ),
        (
            RuntimeError("Gloo connectFullMesh failed with [x.cc:1] timed out connecting"),
            3,
            False,
            "rank 1 lost contact with another rank while decoding (step 5): Gloo connectFullMesh failed with [x.cc:1] "
            "timed out connecting",
        ),
        (
            RuntimeError("NCCL error in: x.cpp:1, remote process exited or there was a network error"),
            3,
            False,
            "rank 1 lost contact with another rank while decoding (step 5): NCCL error in: x.cpp:1, remote process "
            "exited or there was a network error",
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"),
            3,
            True,
            "rank 1's GPU failed while decoding (step 5): CUDA error: an illegal memory access was encountered; see "
            "nvidia-smi and dmesg (Xid)",
        ),
        (
            KeyError("wq"),
            1,
            True,
            "rank 1 failed while decoding (step 5): KeyError: 'wq' (a fault of shardrun's; please report it)",
        ),
        (
            RuntimeError(""),
            1,
            True,
            "rank 1 failed while decoding (step 5): RuntimeError: RuntimeError (a fault of shardrun's; please report "
            "it)",
        ),
    ],
)
def test_what_is_said_of_an_error(error: BaseException, code: int, cause: bool, text: str) -> None:
    found = Failure.of(error, 1)
    assert (found.exit_code, found.cause, found.text) == (code, cause, text)
    assert found.doing == "decoding (step 5)"
    assert not found.no_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(_ALLOCATOR),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("NCCL error in: x.cpp:1\nLast error: Cuda failure 2 'out of memory'"),
    ],
    ids=["python", "cpu", "cuda", "nccl"],
)
def test_an_allocators_message_is_one_line_and_says_what_takes_less(error: BaseException) -> None:
    found = Failure.of(error, 1)
    assert (found.exit_code, found.cause, found.no_memory) == (3, True, True)
    assert found.text.startswith("rank 1 is out of memory while decoding (step 5): ")
    assert "fewer sequences (--max_batch_size)" in found.text
    assert "\n" not in found.text


def test_what_ranks_wrote_down_is_read_in_order_of_rank(tmp_path: Path) -> None:
    written = [Failure.of(RankFailedError(f"rank {rank}"), rank) for rank in (2, 0, 1)]
    for failure in written:
        failure.write(tmp_path)
    (tmp_path / ".failure-3.partial").write_text("{")
    assert Failure.read_all(tmp_path) == sorted(written, key=lambda failure: failure.rank)
