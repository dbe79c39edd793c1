"""Decode speed of the exact mode beside the normal one, at MP 1 and 2.

    .venv/bin/python scripts/bench_exact.py --ckpt_dir DIR [--repeats 15] [--new_tokens 50]

At each MP and dtype the ranks hold the model both ways, on one thread, and the ways take turns, so that a slow moment
of the machine meets both. Shown are tokens a second of decoding one row (median over the turns, lowest and highest)
and the median of the turns' ratios to the normal mode.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire

_CORES = len(os.sched_getaffinity(0))
_PROMPT_TOKENS = 16


def worker(ckpt_dir: str, dtype: str, repeats: int, new_tokens: int) -> None:
    """One rank: print what each way takes a turn, in tokens a second."""
    import torch

    from model.building import build_model
    from model.looking import look
    from parallel import start_world

    world = start_world(device="cpu")
    found = look(str(ckpt_dir), None, world.mesh.size)
    models = {"exact" if exact else "normal": build_model(found, world, dtype, exact=exact) for exact in (False, True)}
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {way: [] for way in models}
    for turn in range(repeats + 1):
        for way, model in models.items():
            rate = decode_rate(model, new_tokens)
            # The first turn warms up.
            rates[way] += [rate] if turn else []
    print(json.dumps(rates))
    world.close()


def decode_rate(model: Any, new_tokens: int) -> float:
    """Tokens a second of greedy decoding, without the prefill. Collective."""
    import torch

    with torch.inference_mode():
        cache = model.new_cache(1, _PROMPT_TOKENS + new_tokens)
        hidden_BTD = model(torch.arange(1, _PROMPT_TOKENS + 1).unsqueeze(0), cache)
        cache.advance([_PROMPT_TOKENS])
        started = time.perf_counter()
        for _ in range(new_tokens):
            token_B = model.logits(hidden_BTD[:, -1]).argmax(-1)
            hidden_BTD = model(token_B.unsqueeze(1), cache)
            cache.advance([1])
        return new_tokens / (time.perf_counter() - started)


def rates_of(ckpt_dir: str, dtype: str, ranks: int, repeats: int, new_tokens: int) -> dict[str, list[float]]:
    """Start the ranks; what rank 0 measured."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, __file__, "worker", ckpt_dir, dtype, str(repeats), str(new_tokens)]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            environ = {**os.environ, "PYTHONPATH": str(root)}
            if ranks > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                environ |= {name: str(value) for name, value in place.items()}
                environ |= {"SHARDRUN_RENDEZVOUS_FILE": f"{folder}/store", "GLOO_SOCKET_IFNAME": "lo"}
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    rates: dict[str, list[float]] = json.loads(outputs[0].splitlines()[-1])
    return rates


def bench(ckpt_dir: str, repeats: int = 15, new_tokens: int = 50) -> None:
    """Measure and print a table."""
    median: Callable[[list[float]], float] = statistics.median
    print(f"{Path(ckpt_dir).name}: {_CORES} cores, {_PROMPT_TOKENS} + {new_tokens} tokens, {repeats} turns")
    for dtype in ("float32", "bfloat16"):
        for ranks in (1, 2):
            rates = rates_of(ckpt_dir, dtype, ranks, repeats, new_tokens)
            for way, own in rates.items():
                ratio = median([mine / other for mine, other in zip(own, rates["normal"], strict=True)])
                spread = f"({min(own):.1f} to {max(own):.1f})"
                print(
                    f"{dtype:8} MP {ranks} {way:6} {median(own):8.1f} tokens/s {spread}, ratio {ratio:.2f}", flush=True
                )


if __name__ == "__main__":
    fire.Fire({"worker": worker}) if sys.argv[1:2] == ["worker"] else fire.Fire(bench)
