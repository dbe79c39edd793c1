"""What this host has, and so which dtype is computed in: memory, and what its processor can do. No torch."""

from pathlib import Path

from model.checkpoint.files import DTYPE_BYTES
from parallel.errors import RefusedError


def name_dtype(asked: str, stored: str, device: str) -> tuple[str, str]:
    """The dtype to compute in, and why. `auto`: the file's, but on a CPU none that it computes slowly."""
    if asked not in ("auto", *DTYPE_BYTES):
        raise RefusedError(f"dtype is {asked!r}; wanted auto, {', '.join(DTYPE_BYTES)}")
    if asked != "auto":
        return asked, "asked for"
    if device == "cpu" and stored == "float16":
        return "float32", "the files' float16 is slow on a CPU"
    if device == "cpu" and stored == "bfloat16" and not cpu_has_bfloat16():
        return "float32", "this processor has no bfloat16 arithmetic"
    return stored, "the files'"


def cpu_has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16 natively (AVX-512 BF16, AMX, or Arm's BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    line = next((line for line in flags.splitlines() if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(line.split()))


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
