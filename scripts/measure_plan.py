"""What `plan` predicts of each rank's memory, beside what real runs take.

    .venv/bin/python scripts/measure_plan.py [--folder DIR] [--cases 0,3] [--json_only]

Writes checkpoints of random weights (537 MB in bfloat16, 1.07 GB in float32, one shard and two), asks `plan` about
a run, and runs it: prompts of almost max_seq_len random ids, then a few tokens drawn. Each rank samples
/proc/self/status every 10 ms, from when its libraries are loaded and the ranks have met: the growth of VmRSS
(private memory and mapped files) and of RssAnon (private memory alone). CPU only. The last cases are those where
temporaries are a large part: what glibc's heap holds besides them differs from run to run by a third.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fire

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"dim": 1024, "n_layers": 18, "n_heads": 16, "n_kv_heads": 4, "multiple_of": 256, "vocab_size": 32000}
_NEW_TOKENS = 4
# Shards, ranks, dtype of the files, dtype of the run, batch, tokens.
_CASES = (
    (1, 1, "bfloat16", "bfloat16", 1, 64),
    (1, 1, "bfloat16", "bfloat16", 8, 512),
    (1, 1, "bfloat16", "float32", 4, 512),
    (1, 1, "float32", "float32", 1, 64),
    (1, 1, "float32", "float32", 8, 512),
    (2, 2, "bfloat16", "bfloat16", 1, 64),
    (2, 2, "bfloat16", "bfloat16", 4, 512),
    (2, 2, "bfloat16", "float32", 4, 512),
    (1, 2, "bfloat16", "bfloat16", 4, 512),
    (2, 1, "bfloat16", "bfloat16", 4, 512),
    (1, 3, "bfloat16", "bfloat16", 4, 512),
    (1, 1, "bfloat16", "bfloat16", 32, 256),
    (1, 1, "bfloat16", "bfloat16", 2, 4096),
    (2, 2, "bfloat16", "bfloat16", 16, 512),
    (2, 2, "float32", "float32", 4, 2048),
)


class Growth:
    """The highest VmRSS and RssAnon of this process since it was made, over what they were then, in bytes."""

    def __init__(self) -> None:
        self._base = self._now()
        self._peak = self._base
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _now() -> tuple[int, int]:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        resident, private = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "RssAnon"))
        assert resident is not None and private is not None
        return int(resident[1]) * 1024, int(private[1]) * 1024

    def _watch(self) -> None:
        while True:
            now = self._now()
            self._peak = (max(self._peak[0], now[0]), max(self._peak[1], now[1]))
            time.sleep(0.01)

    @property
    def bytes(self) -> dict[str, int]:
        return {"resident": self._peak[0] - self._base[0], "private": self._peak[1] - self._base[1]}


def as_rank(folder: str, dtype: str, batch: int, tokens: int) -> None:
    """One rank of one run; prints its growth."""
    from model import Llama
    from parallel import start_world

    world = start_world(device="cpu")
    growth = Growth()
    llama = Llama.build(str(folder), None, tokens, batch, dtype=dtype, world=world)
    vocabulary = int(SIZES["vocab_size"])
    # Rows of different lengths, as prompts are.
    prompts = [
        [(7 * row + place) % vocabulary for place in range(tokens - _NEW_TOKENS - row % 2)] for row in range(batch)
    ]
    for _ in llama.start(prompts, _NEW_TOKENS).events():
        pass
    time.sleep(0.05)
    found = growth.bytes
    world.close()
    print(json.dumps(found))


def measure(folder: Path, ranks: int, dtype: str, batch: int, tokens: int) -> list[dict[str, int]]:
    """Run it; each rank's growth in bytes."""
    with tempfile.TemporaryDirectory() as meeting:
        processes = []
        for rank in range(ranks):
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            if ranks > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                environ |= {name: str(value) for name, value in place.items()}
                environ |= {"SHARDRUN_RENDEZVOUS_FILE": f"{meeting}/store", "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, __file__, "as_rank", str(folder), dtype, str(batch), str(tokens)]
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        return [json.loads(process.communicate(timeout=900)[0].splitlines()[-1]) for process in processes]


def predict(folder: Path, ranks: int, dtype: str, batch: int, tokens: int) -> list[dict[str, int]]:
    """What the real command says of each rank."""
    flags = {"mp": ranks, "dtype": dtype, "max_batch_size": batch, "max_seq_len": tokens, "device": "cpu"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "launcher", "plan", str(folder), "--json", *words]
    planned = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    names = {"resident": "host_peak_bytes", "private": "host_private_bytes", "workspace": "workspace_bytes"}
    return [{name: rank[key] for name, key in names.items()} for rank in planned["ranks"]]


def write_random(folder: Path, dtype: str) -> None:
    """One shard of random numbers."""
    import torch

    from model.checkpoint.params_json import read_params
    from model.checkpoint.shard_writer import PlannedTensor, write_shard
    from model.cuts import all_weights

    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(SIZES))
    kind: torch.dtype = getattr(torch, dtype)
    draw = torch.Generator().manual_seed(1)

    def planned(name: str, shape: tuple[int, ...]) -> PlannedTensor:
        return PlannedTensor(name, shape, kind, lambda: (torch.randn(shape, generator=draw) * 0.02).to(kind))

    weights = all_weights(read_params(folder / "params.json"), 1)
    write_shard(folder / "consolidated.00.pth", [planned(weight.name, weight.shape) for weight in weights])


def make_folder(place: Path, dtype: str, shards: int) -> Path:
    """The checkpoint of so many shards, made when it is first wanted."""
    folder = place / f"{dtype}-mp{shards}"
    if not folder.exists():
        if shards == 1:
            write_random(folder, dtype)
        else:
            whole = make_folder(place, dtype, 1)
            command = [sys.executable, "-m", "launcher", "reshard", str(whole), str(folder), "--mp", str(shards)]
            subprocess.run(command, cwd=ROOT, check=True)
    return folder


def compare(folder: str | None = None, json_only: bool = False, cases: object = "") -> None:
    """Predict and measure every case, and print both. `cases`: the numbers of those that are wanted."""
    wanted = [int(number) for number in re.findall(r"\d+", str(cases))] or range(len(_CASES))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        results: list[dict[str, Any]] = []
        for shards, ranks, stored, dtype, batch, tokens in (_CASES[number] for number in wanted):
            checkpoint = make_folder(Path(place), stored, shards)
            planned = predict(checkpoint, ranks, dtype, batch, tokens)
            measured = measure(checkpoint, ranks, dtype, batch, tokens)
            name = f"{stored}, {shards} shard(s), {ranks} rank(s) in {dtype}, {batch} x {tokens}"
            for rank, (said, found) in enumerate(zip(planned, measured, strict=True)):
                results.append({"case": name, "rank": rank, "planned": said, "measured": found})
                if not json_only:
                    print(
                        f"{name:<62} rank {rank}: {_shown('resident', said, found)}; {_shown('private', said, found)}"
                    )
                    sys.stdout.flush()
        if json_only:
            print(json.dumps(results))


def _shown(kind: str, said: dict[str, int], found: dict[str, int]) -> str:
    ratio = said[kind] / found[kind]
    return f"{kind} {said[kind] / 1e6:.0f} MB planned, {found[kind] / 1e6:.0f} measured, {ratio:.3f}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    fire.Fire({"as_rank": as_rank} if sys.argv[1:2] == ["as_rank"] else compare)
