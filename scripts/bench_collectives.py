"""Collectives between ranks of this machine: through memory that they share, against gloo's sockets.

    .venv/bin/python scripts/bench_collectives.py [--rounds 7]

For 2 and 4 ranks of one thread and messages of several sizes, float32: each collective many times through the one and
through the other, in turns; microseconds each of the fastest round (what else runs on the machine only adds; the
median of the rounds in brackets), of the slowest rank, and their ratio. Ranks are bound to the cores in turns while
they use memory: waking each other through sockets brings them to one core, where they would still be for a while.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire

SIZES = (("4 KiB", 2**12), ("8 KiB", 2**13), ("64 KiB", 2**16), ("1 MiB", 2**20), ("4 MiB", 2**22))
KINDS = ("all-reduce", "all-gather", "broadcast")
_RANKS = (2, 4)
# What is sent through each in a round, and how often at most.
_ROUND_BYTES, _MOST = 2**24, 150


def measure(world: Any, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each collective in each round, through memory and through sockets."""
    import torch

    from parallel.collectives import all_gather_last_dim, all_reduce, broadcast

    acts = dict(zip(KINDS, (all_reduce, all_gather_last_dim, broadcast), strict=True))
    assert world.mesh.exchange is not None, "no shared memory here"
    cores = sorted(os.sched_getaffinity(0))
    own = cores[world.env.rank % len(cores)]
    ways = ((world.mesh, [own]), (replace(world.mesh, exchange=None), cores))
    found: dict[str, tuple[list[float], list[float]]] = {}
    for size, size_bytes in SIZES:
        for kind, act in acts.items():
            # Of an all-gather, what all ranks have together is of this size.
            x = torch.zeros(size_bytes // 4 // (world.mesh.size if kind == "all-gather" else 1))
            times = max(8, min(_MOST, _ROUND_BYTES // size_bytes))
            took: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds + 1):
                for (mesh, allowed), list_s in zip(ways, took, strict=True):
                    os.sched_setaffinity(0, allowed)
                    act(x, mesh)
                    started = time.perf_counter()
                    for _ in range(times):
                        act(x, mesh)
                    list_s.append((time.perf_counter() - started) / times)
            # The first round touches the memory for the first time.
            found[f"{kind} {size}"] = (took[0][1:], took[1][1:])
    return found


def worker(rounds: int) -> None:
    from parallel.world import start_world

    world = start_world(device="cpu")
    print(json.dumps(measure(world, rounds)))
    world.close()


def start_ranks(ranks: int, rounds: int) -> list[dict[str, Any]]:
    """One measurement; the result of each rank."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            environ = {**os.environ, **{name: str(value) for name, value in place.items()}}
            environ |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            environ |= {"SHARDRUN_RENDEZVOUS_FILE": f"{folder}/store", "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, __file__, "worker", str(rounds)]
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        return [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in processes]


def bench(rounds: int = 7) -> None:
    """Measure and print a line for each number of ranks, collective and size."""
    for ranks in _RANKS:
        found = start_ranks(ranks, rounds)
        for what in found[0]:
            memory_us, sockets_us = (1e6 * max(min(rank[what][way]) for rank in found) for way in (0, 1))
            medians = (1e6 * max(statistics.median(rank[what][way]) for rank in found) for way in (0, 1))
            usual = ", ".join(f"{median_us:.1f}" for median_us in medians)
            print(
                f"{ranks} ranks on {len(os.sched_getaffinity(0))} cores, {what}: memory {memory_us:.1f} us, sockets "
                f"{sockets_us:.1f} us, {sockets_us / memory_us:.1f} times ({usual})"
            )


if __name__ == "__main__":
    fire.Fire({"worker": worker}) if sys.argv[1:2] == ["worker"] else fire.Fire(bench)
