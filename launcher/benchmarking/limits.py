"""The machine's limits, measured here: a large matrix product, and reading a large buffer, by all ranks at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.benchmarking.gathering import gather_numbers, synchronise
from model.host import available_host_bytes
from parallel import World
from parallel.kernels import native
from parallel.position import position

# Large enough to keep every core, or a whole GPU, busy for some milliseconds.
_CPU_WIDTH, _GPU_WIDTH = 2048, 8192
# Of all ranks of a host together: beyond what caches hold. Of a GPU: beyond its L2.
_CPU_BUFFER_BYTES, _GPU_BUFFER_BYTES = 2**29, 2**30
_ROW_NUMBERS = 4096
_PASSES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of all ranks together, at their best."""

    peak_flops_per_s: float
    bandwidth_bytes_per_s: float


def measure_limits(world: World, dtype: torch.dtype) -> Limits:
    """What the devices and threads of these ranks reach. Collective."""
    position.phase("measuring the machine")
    with torch.inference_mode():
        limits = Limits(peak_flops_per_s=_peak_flops(world, dtype), bandwidth_bytes_per_s=_bandwidth(world))
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # else it would count as taken
    return limits


def best_of(one: Limits, other: Limits) -> Limits:
    """Other work on the machine makes limits look lower, never higher."""
    return Limits(
        peak_flops_per_s=max(one.peak_flops_per_s, other.peak_flops_per_s),
        bandwidth_bytes_per_s=max(one.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s),
    )


def _peak_flops(world: World, dtype: torch.dtype) -> float:
    width = _CPU_WIDTH if world.device.type == "cpu" else _GPU_WIDTH
    numbers = torch.randn(width, width, device=world.device).to(dtype)
    return _best_rate(world, 2.0 * width**3, lambda: torch.mm(numbers, numbers))


def _bandwidth(world: World) -> float:
    """Bytes a second. On a GPU those of a copy, which are read and written."""
    if world.device.type == "cuda":
        nbytes = min(_GPU_BUFFER_BYTES, torch.cuda.mem_get_info(world.device)[0] // 8)
        source = torch.ones(nbytes // 4, device=world.device)
        target = torch.empty_like(source)
        return _best_rate(world, 2.0 * source.nbytes, lambda: target.copy_(source))
    nbytes = min(_CPU_BUFFER_BYTES, available_host_bytes() // 4) // world.env.local_world_size
    rows = max(1, nbytes // (4 * _ROW_NUMBERS))
    matrix, x = torch.ones(rows, _ROW_NUMBERS), torch.ones(1, _ROW_NUMBERS)
    # Which is faster depends on the machine; the faster one is nearer to the limit.
    rates = [_best_rate(world, float(matrix.nbytes), matrix.sum)]
    usable = gather_numbers(world, [float(native.usable(x, 1))])
    if all(able for (able,) in usable):
        rates.append(_best_rate(world, float(matrix.nbytes), lambda: native.products(x, (matrix,))))
    return max(rates)


def _best_rate(world: World, amount: float, act: Callable[[], Tensor]) -> float:
    """`amount` a second in `act`, of all ranks together, in the best of several passes. Collective."""
    act()
    passes = []
    for _ in range(_PASSES):
        synchronise(world)
        started = time.perf_counter()
        act()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        passes.append(time.perf_counter() - started)
        position.tick()
    everyone = gather_numbers(world, passes)
    slowest: list[float] = [max(together) for together in zip(*everyone, strict=True)]
    return len(everyone) * amount / min(slowest)
