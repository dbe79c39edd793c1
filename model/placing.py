"""Which dtype the weights take on a device, and whether they fit, asked before anything is loaded."""

from pathlib import Path

import torch

from model.cuts import all_weights
from model.params import Params
from parallel import RefusedError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(asked: str, stored: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and why. `auto`: the file's, but on a CPU none that it computes slowly."""
    if asked not in ("auto", *DTYPES):
        raise RefusedError(f"dtype is {asked!r}; wanted auto, {', '.join(DTYPES)}")
    if asked != "auto":
        return DTYPES[asked], "asked for"
    if device.type == "cpu" and stored == "float16":
        return torch.float32, "the files' float16 is slow on a CPU"
    if device.type == "cpu" and stored == "bfloat16" and not cpu_has_bfloat16():
        return torch.float32, "this processor has no bfloat16 arithmetic"
    return DTYPES[stored], "the files'"


def cpu_has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16 natively (AVX-512 BF16, AMX, or Arm's BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    line = next((line for line in flags.splitlines() if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(line.split()))


def share_bytes(params: Params, mp: int, dtype: torch.dtype) -> int:
    """Bytes of one rank's weights."""
    shapes = [weight.shape_at(mp) for weight in all_weights(params, 1)]
    return sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize


def check_room(needed_bytes: int, device: torch.device, local_ranks: int, what: str) -> None:
    """Refuse where `needed_bytes` on each of this host's ranks are more than is free now."""
    if device.type == "cuda":
        # What torch's allocator keeps for reuse counts as free; ranks may share a GPU.
        cached_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free_bytes, where = torch.cuda.mem_get_info(device)[0] + cached_bytes, f"on {device}"
        together = needed_bytes * -(-local_ranks // torch.cuda.device_count())
    else:
        free_bytes, where, together = available_host_bytes(), "on this host", needed_bytes * local_ranks
    if together > free_bytes:
        raise RefusedError(
            f"{what}: {together} bytes ({together / 1e9:.2f} GB) are needed {where}, {free_bytes} "
            f"({free_bytes / 1e9:.2f} GB) "
            "are free; use more ranks on more devices, a smaller dtype, or a smaller batch and max_seq_len"
        )


def available_host_bytes() -> int:
    """Memory that can be had without swapping; a container's limit counts. A huge number where nobody says."""
    free = [2**62]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        group = Path("/sys/fs/cgroup")
        allowed = (group / "memory.max").read_text(encoding="ascii").strip()
        if allowed != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            # Pages of files are given back when memory is wanted; our own mapped shards are among them.
            files = int(counts.get("active_file", 0)) + int(counts.get("inactive_file", 0))
            free.append(int(allowed) - used + files)
    except (OSError, ValueError):
        pass
    return min(free)
