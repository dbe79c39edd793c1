"""One rank of the doctor's all-reduce: it meets others as the ranks of a run do, as often as it is asked to."""

import os
import re
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from parallel.collectives import all_reduce
from parallel.world import start_world

_NUMBERS = 4096  # of float32: 16 KiB
_WARM_UP, _TIMED = 3, 15
# Where in its own sources a library found the error.
_PLACE = re.compile(r"^\[[^\]]*\] ")


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job; the seconds of an all-reduce, or what is wrong. Collective over the ranks of the job."""
    try:
        return {"job": job["job"], "seconds": _all_reduce(job)}
    except Exception as error:  # whatever torch raises is what this pair has to say
        text = _PLACE.sub("", str(error).partition("\n")[0])
        return {"job": job["job"], "error": text or type(error).__name__}


def _all_reduce(job: Mapping[str, Any]) -> float:
    """Meet the others, add up, and leave; the median time in seconds."""
    os.environ.update(job["environment"])
    world = start_world(device=job["device"], timeout_s=job["timeout_s"])
    own = torch.full((_NUMBERS,), float(world.env.rank + 1), device=world.device)
    times = []
    for _ in range(_WARM_UP + _TIMED):
        started = time.perf_counter()
        total = float(all_reduce(own.clone(), world.mesh)[-1].item())
        times.append(time.perf_counter() - started)
    size = world.env.world_size
    world.close()
    if total != size * (size + 1) / 2:
        raise RuntimeError(f"computes wrongly: the sum of 1 to {size} came out as {total:g}")
    return statistics.median(times[_WARM_UP:])
