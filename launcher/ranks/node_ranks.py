"""How many ranks a host starts where the job leaves it to the host: nproc_per_node auto, gpu or cpu. Without torch."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from parallel.environment import cpu_cores
from parallel.errors import RefusedError


def count_ranks(wanted: int | str | None, device: str, gpus: int, cores: int) -> int:
    """The ranks of a host with so many GPUs and CPU cores. RefusedError where it has none of what is wanted.

    `auto` is a rank for each GPU, and one rank where there is none or the device is cpu: a rank for each core, as
    torchrun has it, would cut the model needlessly.
    """
    if wanted is None:
        return 1
    if isinstance(wanted, int):
        return wanted
    if wanted == "cpu":
        return cores
    if wanted == "gpu" and not gpus:
        raise RefusedError("--nproc_per_node is gpu but this host has no GPU that can be seen; give a number of ranks")
    return gpus if wanted == "gpu" or (gpus and device != "cpu") else 1


def count_gpus(visible: str | None, devices: int) -> int:
    """The GPUs of a host that a process may use: of its `devices` those that CUDA_VISIBLE_DEVICES lets it see."""
    if visible is None:
        return devices
    seen: list[str] = []
    for word in visible.split(","):
        name = word.strip()
        # CUDA stops at the first name that is none, or that it has seen.
        known = name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < devices)
        if not known or name in seen:
            break
        seen.append(name)
    return min(len(seen), devices)


def ranks_here(wanted: int | str | None, device: str, environ: Mapping[str, str] | None = None) -> int:
    """The ranks that this host starts."""
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    return count_ranks(wanted, device, count_gpus(visible, _devices()), cpu_cores())


def _devices(root: Path = Path("/")) -> int:
    """NVIDIA's GPUs as the driver lists them: in a container /proc may show those of the host, /dev does not."""
    nodes = [path for path in root.glob("dev/nvidia*") if re.fullmatch(r"nvidia[0-9]+", path.name)]
    return len(nodes) or sum(1 for _ in root.glob("proc/driver/nvidia/gpus/*"))
