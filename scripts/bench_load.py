"""Loading speed and memory, beside the reference's way: torch.load to the CPU, build the model, load_state_dict.

    .venv/bin/python scripts/bench_load.py [--gigabytes 2.2] [--ranks 1,2] [--repeats 3] [--folder DIR]

Writes a checkpoint of random bfloat16 weights, one shard a rank, and loads it from a warm page cache. Every
load is a process a rank, started together; the two ways take turns, so that a slow minute of the machine
meets both. The clock stops when every weight's bytes are in their final place and, here but not there,
checked: CRC-32 of each record and finite numbers. Memory is RssAnon of /proc/self/status, sampled every
5 ms, less what it was after imports. Neither way's time holds the imports or the packing of weights for
decoding. Then, for our way alone: 2 shards on 1 rank, 1 shard on 2 ranks, conversion to float32, and `reshard`.
"""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch

from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from model.checkpoint.shard_writer import PlannedTensor, write_shard
from model.cuts import all_weights
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh


def resident_bytes(kind: str, pid: int | str = "self") -> int:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else 0


class Peak:
    """The highest RssAnon from now on, over what it is now, in bytes."""

    def __init__(self) -> None:
        self.base = resident_bytes("RssAnon")
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes("RssAnon") - self.base)
            time.sleep(0.005)


def reference_way(folder: Path, rank: int, ranks: int, dtype: torch.dtype) -> object:
    """As llama's generation.py does, but kinder: no initial values are drawn, and no full weight is made first."""
    shard = torch.load(folder / f"consolidated.{rank:02d}.pth", map_location="cpu", weights_only=True)
    params = open_checkpoint(folder).params
    with torch.device("meta"):
        model = Transformer(params, Mesh(rank, ranks)).to(dtype)
    model = model.to_empty(device="cpu")
    model.load_state_dict(shard, strict=False)
    return model


def our_way(folder: Path, rank: int, ranks: int, dtype: torch.dtype) -> object:
    checkpoint = open_checkpoint(folder)
    with torch.device("meta"):
        model = Transformer(checkpoint.params, Mesh(rank, ranks))
    weights = load_weights(checkpoint, rank, ranks, dtype, torch.device("cpu"), range(ranks))
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def as_rank(way: str, folder: str, rank: int, ranks: int, dtype: str, threads: int) -> None:
    """One rank of one measurement: waits for a line on stdin, loads, prints figures."""
    torch.set_num_threads(threads)
    load: Callable[..., object] = {"reference": reference_way, "shardrun": our_way}[way]
    before, peak = resident_bytes("RssFile"), Peak()
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    model = load(Path(folder), rank, ranks, getattr(torch, dtype))
    took_s = time.perf_counter() - started
    time.sleep(0.02)
    mapped = resident_bytes("RssFile") - before
    print(json.dumps({"seconds": took_s, "private": peak.bytes, "mapped": mapped}), flush=True)
    del model


def measure(way: str, folder: Path, ranks: int, dtype: str = "bfloat16") -> dict[str, float]:
    """The slowest rank's seconds; private and mapped bytes of all ranks together."""
    threads = max(1, torch.get_num_threads() // ranks)
    command = [sys.executable, __file__, "as_rank", way, str(folder)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), dtype, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in processes]
    return {
        "seconds": max(one["seconds"] for one in found),
        "private": sum(one["private"] for one in found),
        "mapped": sum(one["mapped"] for one in found),
    }


def write_random(folder: Path, gigabytes: float) -> None:
    """A checkpoint of about this size in one shard: layers of 101 MB, random numbers."""
    layers = max(1, round((gigabytes * 1e9 - 0.26e9) / 92.3e6))
    sizes: dict[str, Any] = {"dim": 2048, "n_layers": layers, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 256}
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({**sizes, "norm_eps": 1e-5, "vocab_size": 32000}))
    params = Params(
        dim=2048,
        n_layers=layers,
        n_heads=32,
        n_kv_heads=8,
        ffn_dim=5632,
        vocab_size=32000,
        norm_eps=1e-5,
        rope_theta=1e4,
        rope_scaling=None,
        rope_reason="",
    )
    draw = torch.Generator().manual_seed(1)

    def planned(name: str, shape: tuple[int, ...]) -> PlannedTensor:
        return PlannedTensor(
            name, shape, torch.bfloat16, lambda: (torch.randn(shape, generator=draw) * 0.02).to(torch.bfloat16)
        )

    write_shard(folder / "consolidated.00.pth", [planned(w.name, w.shape) for w in all_weights(params, 1)])


def warm(folder: Path) -> int:
    """Read every shard once; the bytes there are."""
    total = 0
    for path in folder.glob("*.pth"):
        with path.open("rb", buffering=0) as file:
            while count := len(file.read(2**24)):
                total += count
    return total


def report(name: str, runs: list[dict[str, float]], nbytes: int) -> tuple[float, float]:
    seconds = statistics.median(run["seconds"] for run in runs)
    private = max(run["private"] for run in runs)
    spread = f"{min(run['seconds'] for run in runs):.2f} to {max(run['seconds'] for run in runs):.2f}"
    mapped = statistics.median(run["mapped"] for run in runs)
    print(
        f"{name:<34} {seconds:6.2f} s ({spread}), {nbytes / seconds / 1e9:5.2f} GB/s, "
        f"private {private / 1e9:5.2f} GB, mapped {mapped / 1e9:5.2f} GB",
        flush=True,
    )
    return seconds, private


def reshard(source: Path, destination: Path, mp: int) -> None:
    """Run the real command; its time, and the peak of its private memory."""
    command = [sys.executable, "-m", "launcher", "reshard", str(source), str(destination), "--mp", str(mp)]
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it has just ended
            peak = max(peak, resident_bytes("RssAnon", process.pid))
        time.sleep(0.01)
    took_s = time.perf_counter() - started
    assert process.returncode == 0, "reshard failed"
    nbytes = warm(destination)
    print(
        f"  reshard {source.name} to {mp}: {took_s:.1f} s, {nbytes / took_s / 1e9:.2f} GB/s to the disk, "
        f"private {peak / 1e9:.2f} GB (torch itself: about 0.2)",
        flush=True,
    )


def compare(gigabytes: float = 2.2, ranks: Any = (1, 2), repeats: int = 3, folder: str | None = None) -> None:
    """Run the comparison and print it."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        whole = Path(place) / "mp1"
        write_random(whole, gigabytes)
        folders = {1: whole}
        for size in ranks if isinstance(ranks, tuple | list) else (ranks,):
            if size not in folders:
                folders[size] = Path(place) / f"mp{size}"
                write_meta_folder(open_checkpoint(whole), folders[size], size)
            nbytes = warm(folders[size])
            theirs, ours = [], []
            for _ in range(repeats):
                theirs.append(measure("reference", folders[size], size))
                ours.append(measure("shardrun", folders[size], size))
            print(f"{nbytes / 1e9:.2f} GB in {size} shard(s) on {size} rank(s), warm page cache, {repeats} runs each")
            slow, wide = report("  reference: load, build, copy", theirs, nbytes)
            fast, narrow = report("  shardrun: map, check", ours, nbytes)
            print(f"  {slow / fast:.1f} times faster, {narrow / wide:.3f} of its peak private memory", flush=True)
        if 2 in folders:
            for shards, size, dtype in ((2, 1, "bfloat16"), (1, 2, "bfloat16"), (1, 1, "float32")):
                runs = [measure("shardrun", folders[shards], size, dtype) for _ in range(repeats)]
                report(f"  {shards} shard(s) on {size} rank(s), {dtype}", runs, warm(folders[shards]))
            for name, mp in (("mp2", 1), ("mp1", 3)):
                reshard(Path(place) / name, Path(place) / f"{name}-to-{mp}", mp)


if __name__ == "__main__":
    fire.Fire({"compare": compare, "as_rank": as_rank} if "as_rank" in sys.argv[1:2] else compare)
