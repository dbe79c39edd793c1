"""How fast a GPU reads weights in the products of a step: the Triton kernels, torch's, and a copy. See bench_gpu.py.

    .venv/bin/python scripts/gpu_kernels.py FILE.json

Each product runs over weights that together are many times the L2 cache, from a captured graph; the best of some
replays counts. The tilings that were tried are in the file; `tiling_of` should choose about the best.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight, Weight
from parallel.kernels.triton_products import Tiling, products, tiling_of

# Llama-2-7B: wq, wk and wv together; wo; w1 with w3 (gated); w2; output. And of Llama-2-70B on one of eight ranks.
SHAPES = {
    "wqkv": (12288, 4096),
    "wo": (4096, 4096),
    "w1, w3": (11008, 4096),
    "w2": (4096, 11008),
    "output": (32000, 4096),
    "70B wqkv at MP 8": (1280, 8192),
    "70B wo at MP 8": (8192, 1024),
}
KINDS: dict[str, Callable[[Tensor], Weight]] = {
    "none": lambda weight: weight,
    "int8": Int8Weight.of,
    "int4": Int4Weight.of,
}
_READ_BYTES = 2**30
_REPLAYS = 10


def seconds(run: Callable[[], Any]) -> float:
    """Of one `run`, captured: the best of some replays."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(_REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return min(times)


def weight_bytes(weight: Weight) -> int:
    return sum(part.nbytes for part in weight.parameters()) if isinstance(weight, QuantisedWeight) else weight.nbytes


def tilings(usual: Tiling) -> Iterator[Tiling]:
    """Those that add up in the same order as the usual one, and others, for comparison."""
    for columns in (1, 2, 4, 8):
        for warps in (2, 4, 8):
            for lanes in (1, 2):
                yield Tiling(columns=columns, warps=warps, lanes=lanes)
    yield usual


def measure(name: str, quantize: str, rows: int) -> dict[str, Any]:
    """GB/s of one product, as it is chosen and in every tiling; torch's for plain weights."""
    out, width = SHAPES[name]
    gated = "," in name
    first = KINDS[quantize](torch.randn(out, width, dtype=torch.bfloat16, device="cuda") / width**0.5)
    copies = max(2, _READ_BYTES // weight_bytes(first)) // 2 * 2
    weights: list[Weight] = [first, *(copy_of(first) for _ in range(copies - 1))]
    groups = [weights[at : at + 2] for at in range(0, copies, 2)] if gated else [[weight] for weight in weights]
    x = torch.randn(rows, width, dtype=torch.bfloat16, device="cuda")
    total = weight_bytes(first) * copies / 1e9

    def with_tiling(tiling: Tiling | None) -> float:
        return total / seconds(lambda: [products(x, group, gated=gated, tiling=tiling) for group in groups])

    kind = list(KINDS).index(quantize)
    usual = tiling_of(out, kind, gated)
    found: dict[str, Any] = {"product": name, "quantize": quantize, "rows": rows, "chosen": str(usual)}
    found["gb_per_s"] = with_tiling(None)
    found["tilings"] = {str(tiling): tried(lambda: with_tiling(tiling)) for tiling in tilings(usual)}  # noqa: B023
    if quantize == "none":
        found["torch_gb_per_s"] = total / seconds(lambda: [torch_product(x, group) for group in groups])
    return found


def tried(run: Callable[[], float]) -> float | str:
    try:
        return run()
    except Exception as error:  # a tiling may not fit: that is an answer, and no end of the others
        return f"{type(error).__name__}: {error}"[:200]


def copy_of(weight: Weight) -> Weight:
    if isinstance(weight, Tensor):
        return weight.clone()
    return type(weight)(weight.numbers.clone(), weight.scales.clone(), weight.in_features)


def torch_product(x: Tensor, group: Sequence[Weight]) -> Tensor:
    found = [F.linear(x, weight) for weight in group if isinstance(weight, Tensor)]
    return F.silu(found[0]) * found[1] if len(found) == 2 else found[0]


def copy_gb_per_s() -> float:
    """Bytes read and written by a copy of a buffer that no cache holds."""
    source = torch.empty(_READ_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _READ_BYTES / 1e9 / seconds(lambda: target.copy_(source))


@torch.inference_mode()
def main(file: str) -> None:
    found: dict[str, Any] = {"copy_gb_per_s": copy_gb_per_s(), "products": []}
    print(f"copy: {found['copy_gb_per_s']:.0f} GB/s", flush=True)
    for quantize in KINDS:
        for name in SHAPES:
            for rows in (1, 8):
                one = measure(name, quantize, rows)
                found["products"].append(one)
                numbers = {key: value for key, value in one["tilings"].items() if isinstance(value, float)}
                best = max(numbers, key=numbers.__getitem__)
                beside = f", torch {one['torch_gb_per_s']:.0f}" if "torch_gb_per_s" in one else ""
                print(
                    f"{name}, {quantize}, {rows} rows: {one['gb_per_s']:.0f} GB/s{beside}; best {numbers[best]:.0f} "
                    f"with {best}",
                    flush=True,
                )
                Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
