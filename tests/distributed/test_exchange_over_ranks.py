"""Shared memory between ranks: the same results as gloo's, and gloo where it cannot be had."""

import os
import resource
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from parallel import World
from parallel.collectives import all_gather_first_dim, all_gather_last_dim, all_reduce, broadcast
from parallel.exchange import SLOT_BYTES, make_exchange
from parallel.kernels.calls import Program, recording
from parallel.position import position
from tests.distributed.exact import require_equal, whole_numbers
from tests.distributed.pool import Pool, RankError
from tests.distributed.uneven import ragged

SEVERAL = pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)
TWO = pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
# One number, part of a slot, and three slots and a bit.
COUNTS = (1, 1000, 3 * SLOT_BYTES // 4 + 5)


def every_collective_is_as_gloos(world: World) -> None:
    """Gloo's of the same numbers between, so that neither way holds up the other."""
    shared, sockets = world.mesh, replace(world.mesh, exchange=None)
    assert shared.exchange is not None
    for count in COUNTS:
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool):
            mine = whole_numbers(2, count, seed=7 + shared.rank).to(dtype)
            if dtype is not torch.bool:
                require_equal("sum", all_reduce(mine.clone(), shared), all_reduce(mine.clone(), sockets))
            require_equal("last", all_gather_last_dim(mine, shared), all_gather_last_dim(mine, sockets))
            require_equal("first", all_gather_first_dim(mine, shared), all_gather_first_dim(mine, sockets))
            require_equal("broadcast", broadcast(mine.clone(), shared), broadcast(mine.clone(), sockets))


def uneven_gather_of_many_rows(world: World, columns: int, rows: int) -> None:
    mesh, shares = world.mesh, ragged(columns, world.mesh.size)
    parts = [whole_numbers(rows, own.size, seed=3 + rank) for rank, own in enumerate(shares)]
    require_equal("gather", all_gather_last_dim(parts[mesh.rank], mesh, shares), torch.cat(parts, -1))


def sum_of_noise(world: World, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """What the exchange makes of it, and what it should: in order of rank, in float32, rounded once."""
    parts = [torch.randn(4099, generator=torch.Generator().manual_seed(rank)) for rank in range(world.mesh.size)]
    parts = [part.to(dtype) for part in parts]
    wanted = parts[0].float()
    for part in parts[1:]:
        wanted = wanted + part.float()
    total = all_reduce(parts[world.mesh.rank].clone(), world.mesh)
    return total.view(torch.uint8).numpy().tobytes(), wanted.to(dtype).view(torch.uint8).numpy().tobytes()


def counted_collectives(world: World) -> tuple[int, str, bool]:
    before = position.now().collectives
    for _ in range(300):
        all_reduce(torch.ones(3), world.mesh)
    broadcast(torch.ones(1), world.mesh)
    now = position.now()
    return now.collectives - before, now.operation, now.waiting


def gather_that_one_comes_late_to(world: World, late_s: float) -> tuple[str, float]:
    """Where rank 0 was, and the processor's time that it took, while the last rank was away."""
    seen = list[str]()
    if world.mesh.rank == world.mesh.size - 1:
        time.sleep(late_s)
    else:
        threading.Timer(late_s / 2, lambda: seen.append(str(position.now()))).start()
    before_s = time.process_time()
    all_gather_first_dim(torch.ones(1), world.mesh)
    return "".join(seen), time.process_time() - before_s


def sum_while_a_signal_comes(world: World) -> tuple[int, float]:
    """How often a handler ran while this rank waited, and the sum."""
    heard = list[int]()
    before = signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    if world.mesh.rank == 0:
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR2)).start()
    else:
        time.sleep(0.4)
    total = float(all_reduce(torch.ones(1), world.mesh))
    signal.signal(signal.SIGUSR2, before)
    return len(heard), total


def exchange_where_one_rank_cannot_open_files(world: World) -> tuple[bool, float]:
    assert world.mesh.group is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if world.mesh.rank == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        made = make_exchange(world.mesh.group, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    total = float(all_reduce(torch.ones(1), replace(world.mesh, exchange=made)))
    return made is not None, total


def recorded_and_run_again(world: World, late_s: float) -> tuple[list[float], list[float], int, set[str]]:
    """A sum, and a gather of what came of it, recorded with 1 on each rank and run with 2; rank 1 comes late."""
    mesh, program = world.mesh, Program()
    x = torch.ones(3)
    with recording(program):
        gathered = all_gather_last_dim(all_reduce(x, mesh), mesh)
    first = gathered.tolist()
    x.fill_(2)
    before = position.now().collectives
    if mesh.rank == 1:
        time.sleep(late_s)
    program.run()
    return first, gathered.tolist(), position.now().collectives - before, program.missing


def files_and_memory_left_behind(world: World) -> tuple[list[str], list[str]]:
    """Of exchanges that were made, used and dropped: what files are open of them, and what has a name."""
    assert world.mesh.group is not None
    before = _open_files()
    for _ in range(3):
        made = make_exchange(world.mesh.group, 5)
        assert made is not None
        made.broadcast(torch.ones(1))
        del made
    return sorted(_open_files() - before), [name for name in os.listdir("/dev/shm") if "shardrun" in name]


def _open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the listing's own
            continue
    return found


def rank_1_leaves_in_a_sum(world: World) -> None:
    if world.mesh.rank == 1:
        os._exit(7)
    all_reduce(torch.ones(1), world.mesh)


def ranks_call_different_collectives(world: World) -> None:
    if world.mesh.rank == 1:
        all_reduce(torch.ones(3), world.mesh)
    else:
        all_reduce(torch.ones(4), world.mesh)


@SEVERAL
def test_every_collective_gives_what_gloo_gives(ranks: Pool) -> None:
    ranks.run(every_collective_is_as_gloos)


@SEVERAL
@pytest.mark.parametrize(("columns", "rows"), [(7, 1), (33, 5), (3 * SLOT_BYTES // 16 + 1, 3)])
def test_uneven_shares_are_gathered_row_by_row(ranks: Pool, columns: int, rows: int) -> None:
    ranks.run(uneven_gather_of_many_rows, columns, rows)


@SEVERAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sum_is_added_in_order_of_rank_and_rounded_once_on_every_rank(ranks: Pool, dtype: torch.dtype) -> None:
    found = ranks.run(sum_of_noise, dtype)
    assert all(got == wanted for got, wanted in found)
    assert len({got for got, _ in found}) == 1


@SEVERAL
def test_collectives_through_memory_are_counted_in_the_position(ranks: Pool) -> None:
    assert ranks.run(counted_collectives) == [(301, "broadcast", False)] * ranks.size


@TWO
def test_a_rank_that_waits_says_so_and_leaves_the_processor_to_others(ranks: Pool) -> None:
    (seen, took_s), _ = ranks.run(gather_that_one_comes_late_to, 1.0)
    assert "in all-gather number" in seen
    # Looking and waking take some thousandths of the second; the rest is room for a busy machine.
    assert took_s < 0.2


@TWO
def test_a_signal_is_handled_while_a_rank_waits(ranks: Pool) -> None:
    assert ranks.run(sum_while_a_signal_comes) == [(1, 2.0), (0, 2.0)]


@TWO
def test_where_one_rank_cannot_share_memory_all_use_gloo_and_rank_0_says_why(ranks: Pool) -> None:
    assert ranks.run(exchange_where_one_rank_cannot_open_files) == [(False, 2.0)] * 2
    said = "the ranks talk over sockets, not memory, which takes longer: rank 1: [Errno 24] Too many open files: "
    assert said in ranks.printed(0, "stderr")
    assert said not in ranks.printed(1, "stderr")


@TWO
def test_recorded_collectives_run_again_without_python_and_count_once_each(ranks: Pool) -> None:
    # Longer than the kernels wait before they say so: a collective that is called again goes on where it was.
    found = ranks.run(recorded_and_run_again, 0.25)
    assert found == [([2.0] * 6, [4.0] * 6, 2, set())] * 2


@TWO
def test_nothing_is_left_of_shared_memory(ranks: Pool) -> None:
    assert ranks.run(files_and_memory_left_behind) == [([], [])] * 2


@TWO
def test_a_rank_that_has_ended_is_missed_within_a_second(ranks: Pool) -> None:
    with pytest.raises(RankError, match=r"rank 0 raised(.|\n)*DistBackendError: rank 1 \(pid \d+\) has ended"):
        ranks.run(rank_1_leaves_in_a_sum)


@TWO
def test_ranks_out_of_step_are_found_out(ranks: Pool) -> None:
    with pytest.raises(RankError, match=r"out of step: rank \d calls another collective"):
        ranks.run(ranks_call_different_collectives)
