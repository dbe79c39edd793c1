"""What the comparing of ranks and the checksums of weights cost, on two gloo ranks of this machine.

    .venv/bin/python scripts/bench_agreement.py [--rounds 6]

For each shape, with random float32 weights and greedy decoding of one row:

- the time of a check: that of steps that are compared less that of their neighbours that are not, medians of 60;
- its share of decoding: that time, over that of EVERY_STEPS steps;
- decoding with the check as it is and without, in turns of EVERY_STEPS steps: the median ratio of neighbours, which
  says no more than how steady the machine is;
- the checksums that `--check_weights` takes, in GB/s of each rank.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire

_CORES = len(os.sched_getaffinity(0))
_RANKS = 2
_PROMPT = list(range(1, 17))
_PAIRS = 60
_NEVER = 2**40
SHAPES = {
    "stories15M": {"dim": 288, "n_layers": 6, "n_heads": 6, "ffn_dim": 768},
    "100M": {"dim": 1024, "n_layers": 8, "n_heads": 16, "ffn_dim": 2816},
}


class Steps:
    """Greedy decoding of one row; each call is a step and gives its seconds."""

    def __init__(self, world: Any, shape: str, steps: int) -> None:
        import torch

        from model.generation.decoder import Decoder
        from model.generation.settings import Settings
        from model.params import Params
        from model.transformer import Transformer

        sizes = SHAPES[shape]
        params = Params(
            **sizes,
            n_kv_heads=sizes["n_heads"],
            vocab_size=32000,
            norm_eps=1e-5,
            rope_theta=10000.0,
            rope_scaling=None,
            rope_reason="",
        )
        torch.manual_seed(1)
        self.model = Transformer(params, world.mesh).requires_grad_(False).eval()
        settings = Settings(max_gen_len=steps, max_seq_len=steps + len(_PROMPT), temperature=0.0)
        self.decoder = Decoder(self.model, [_PROMPT], settings, [0])
        self.logits_BV = self.decoder.prefill()

    def __call__(self) -> float:
        started = time.perf_counter()
        [[token]] = self.decoder.decide(self.logits_BV, (1, 1), lambda: self.logits_BV.argmax(-1))
        self.logits_BV = self.decoder.advance([token], [0])
        return time.perf_counter() - started

    def compare_every(self, steps: int) -> None:
        from model.generation.agreement import Agreement

        self.decoder._agreement = Agreement(self.model, steps)


def measure(world: Any, shape: str, rounds: int) -> dict[str, Any]:
    import torch

    from model.generation.agreement import EVERY_STEPS
    from model.weight_sums import WeightSums

    with torch.inference_mode():
        step = Steps(world, shape, 20 + 2 * _PAIRS + 2 * rounds * EVERY_STEPS)
        for _ in range(20):
            step()
        step.compare_every(2)
        found = [step() for _ in range(2 * _PAIRS)]
        # Steps are counted from 1: the even ones are compared.
        plain_s, checked_s = statistics.median(found[0::2]), statistics.median(found[1::2])
        ratios = []
        for _ in range(rounds):
            took = []
            for every in (EVERY_STEPS, _NEVER):
                step.compare_every(every)
                took.append(sum(step() for _ in range(EVERY_STEPS)))
            ratios.append(took[0] / took[1])
    started = time.perf_counter()
    sums = WeightSums(step.model)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    sums.check(world)
    return {
        "bytes": sum(weight.nbytes for weight in step.model.parameters()),
        "plain_s": plain_s,
        "check_s": checked_s - plain_s,
        "every": EVERY_STEPS,
        "ratios": ratios,
        "sums_s": min(first_s, time.perf_counter() - started),
    }


def worker(shape: str, rounds: int) -> None:
    from parallel.world import start_world

    world = start_world(device="cpu")
    print(json.dumps(measure(world, shape, rounds)))
    world.close()


def start_ranks(shape: str, rounds: int) -> list[dict[str, Any]]:
    """One measurement; the result of each rank."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(_RANKS):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": _RANKS, "LOCAL_WORLD_SIZE": _RANKS}
            environ = {**os.environ, **{name: str(value) for name, value in place.items()}}
            environ |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(max(1, _CORES // _RANKS))}
            environ |= {"SHARDRUN_RENDEZVOUS_FILE": f"{folder}/store", "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, __file__, "worker", shape, str(rounds)]
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        return [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in processes]


def bench(rounds: int = 6) -> None:
    """Measure and print a line for each shape."""
    for shape in SHAPES:
        found = start_ranks(shape, rounds)
        slowest = max(found, key=lambda rank: float(rank["check_s"]))
        plain_s, check_s, every = (slowest[name] for name in ("plain_s", "check_s", "every"))
        ratios = [ratio for rank in found for ratio in rank["ratios"]]
        paces = ", ".join(f"{rank['bytes'] / rank['sums_s'] / 1e9:.1f}" for rank in found)
        print(
            f"{shape}, MP {_RANKS}: a step {1e3 * plain_s:.2f} ms, a check {1e3 * check_s:.2f} ms, every {every} steps "
            f"{check_s / (every * plain_s):.2%}; with over without {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}); checksums of {found[0]['bytes'] / 1e6:.0f} MB a rank: "
            f"{paces} GB/s"
        )


if __name__ == "__main__":
    fire.Fire({"worker": worker}) if sys.argv[1:2] == ["worker"] else fire.Fire(bench)
