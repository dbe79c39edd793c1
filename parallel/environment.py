"""The one reader of torchrun's variables, and the one place that chooses device and backend.

Reading and choosing are pure functions: they take what they look at, and start nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from parallel.errors import RefusedError

# Set by our own launcher: a private file in which the ranks of one machine meet, no port needed.
RENDEZVOUS_FILE = "SHARDRUN_RENDEZVOUS_FILE"
# Set by our own launcher, on one machine or several: where it reads what its ranks leave for it.
RUN_FOLDER = "SHARDRUN_RUN_FOLDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Which rank this process is, and where the others are to be met."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False
    master_addr: str = ""
    master_port: int = 0
    # torchrun's agent already holds the store at master_addr:master_port.
    agent_store: bool = False
    attempt: int = 0
    rendezvous_file: str = ""
    # Our launcher's private folder on this host; "": somebody else started this process.
    run_folder: str = ""


def _whole(environ: Mapping[str, str], name: str, low: int, high: int | None = None) -> int:
    text = environ[name]
    limits = f"{low} or more" if high is None else f"{low} to {high}"
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
        raise RefusedError(f"{name} is {text!r}; wanted a whole number, {limits} (torchrun sets it)")
    value = int(text)
    if value < low or (high is not None and value > high):
        raise RefusedError(f"{name} is {value}; wanted {limits} (torchrun sets it)")
    return value


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and their kin; rank 0 of 1 where none of the three is set.

    RefusedError names the variable, its value and what was wanted.
    """
    environ = os.environ if environ is None else environ
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = [name for name in names if name in environ]
    if not given:
        return Environment()
    for name in names:
        if name not in environ:
            raise RefusedError(
                f"{name} is not set although {' and '.join(given)} {'is' if len(given) == 1 else 'are'}; "
                "start the ranks with torchrun, or unset them all to run in one process"
            )
    world_size = _whole(environ, "WORLD_SIZE", 1)
    if "LOCAL_WORLD_SIZE" in environ:
        local_world_size = _whole(environ, "LOCAL_WORLD_SIZE", 1, world_size)
    else:
        # Without torchrun nobody says it; at least the ranks up to this one are here.
        local_world_size = _whole(environ, "LOCAL_RANK", 0, world_size - 1) + 1
    rank = _whole(environ, "RANK", 0)
    if rank >= world_size:
        raise RefusedError(f"RANK is {rank} but WORLD_SIZE is {world_size}; ranks count from 0 to {world_size - 1}")
    local_rank = _whole(environ, "LOCAL_RANK", 0, local_world_size - 1)
    rendezvous_file = environ.get(RENDEZVOUS_FILE, "")
    address, port = "", 0
    if world_size > 1 and not rendezvous_file:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environ.get(name):
                raise RefusedError(
                    f"{name} is not set although WORLD_SIZE is {world_size}; start the ranks with torchrun, "
                    "or set MASTER_ADDR and MASTER_PORT to where rank 0 listens"
                )
        address, port = environ["MASTER_ADDR"], _whole(environ, "MASTER_PORT", 1, 65535)
    return Environment(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        launched=True,
        master_addr=address,
        master_port=port,
        agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=_whole(environ, "TORCHELASTIC_RESTART_COUNT", 0) if "TORCHELASTIC_RESTART_COUNT" in environ else 0,
        rendezvous_file=rendezvous_file,
        run_folder=environ.get(RUN_FOLDER, ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What this host and this build of torch can do."""

    cuda_devices: int
    cuda_built: bool
    nccl_built: bool
    visible_devices: str | None
    cpu_cores: int


def read_hardware() -> Hardware:
    """Ask torch and the operating system."""
    import torch
    import torch.distributed as dist

    return Hardware(
        cuda_devices=torch.cuda.device_count(),
        cuda_built=torch.version.cuda is not None,
        nccl_built=dist.is_available() and dist.is_nccl_available(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cpu_cores=cpu_cores(),
    )


def cpu_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where this rank computes and what carries its collectives (None at world size 1)."""

    device: str
    backend: str | None
    threads: int
    reason: str


def choose_placement(
    env: Environment, hardware: Hardware, device: str = "auto", backend: str = "auto", threads: int | None = None
) -> Placement:
    """Choose device and backend, or refuse with the reason. `threads`: a number that the user set."""
    if device not in ("auto", "cuda", "cpu"):
        raise RefusedError(f"device is {device!r}; wanted auto, cuda or cpu (LOCAL_RANK says which GPU)")
    if backend not in ("auto", "nccl", "gloo"):
        raise RefusedError(f"backend is {backend!r}; wanted auto, nccl or gloo")
    chosen, why_device = _choose_device(env, hardware, device, backend)
    carrier, why_backend = _choose_backend(env, hardware, chosen, device, backend)
    share = threads or max(1, hardware.cpu_cores // env.local_world_size)
    reason = f"device {chosen} ({why_device}), {share} CPU thread{'s' if share > 1 else ''}"
    where = f"backend {carrier} ({why_backend})" if carrier else "one process, no process group"
    return Placement(device=chosen, backend=carrier, threads=share, reason=f"{where}, {reason}")


def _no_cuda(hardware: Hardware) -> str:
    if not hardware.cuda_built:
        return "this torch was built without CUDA"
    if hardware.visible_devices is not None:
        return f"torch sees no CUDA device (CUDA_VISIBLE_DEVICES={hardware.visible_devices!r})"
    return "torch sees no CUDA device"


def _choose_device(env: Environment, hardware: Hardware, device: str, backend: str) -> tuple[str, str]:
    if device == "cpu":
        return "cpu", "asked for"
    if hardware.cuda_devices == 0:
        if device == "cuda":
            raise RefusedError(f"--device cuda: {_no_cuda(hardware)}; use --device cpu")
        return "cpu", _no_cuda(hardware)
    if env.local_world_size <= hardware.cuda_devices:
        return f"cuda:{env.local_rank}", "from LOCAL_RANK"
    if device == "cuda" and backend == "gloo":
        index = env.local_rank % hardware.cuda_devices
        return f"cuda:{index}", f"{env.local_world_size} ranks share {hardware.cuda_devices} GPUs, as asked"
    visible = "not set" if hardware.visible_devices is None else repr(hardware.visible_devices)
    raise RefusedError(
        f"{env.local_world_size} ranks on this host but {hardware.cuda_devices} visible CUDA "
        f"device{'s' if hardware.cuda_devices > 1 else ''} (LOCAL_RANK={env.local_rank}, CUDA_VISIBLE_DEVICES "
        f"{visible}); start at most {hardware.cuda_devices} ranks here, or use --device cpu, or let ranks share "
        "GPUs with --device cuda --backend gloo"
    )


def _choose_backend(
    env: Environment, hardware: Hardware, chosen: str, device: str, backend: str
) -> tuple[str | None, str]:
    on_cuda = chosen.startswith("cuda")
    if backend == "nccl":
        if not on_cuda:
            reason = "--device cpu was asked for" if device == "cpu" else _no_cuda(hardware)
            raise RefusedError(f"--backend nccl needs a GPU for each rank: {reason}; use --backend gloo --device cpu")
        if not hardware.nccl_built:
            raise RefusedError("--backend nccl: this torch was built without NCCL; use --backend gloo")
    if env.world_size == 1:
        return None, ""
    if backend != "auto":
        return backend, "asked for"
    if not on_cuda:
        return "gloo", "nccl needs GPUs"
    if not hardware.nccl_built:
        return "gloo", "this torch was built without NCCL"
    return "nccl", "a GPU for each rank"


def threads_from_environment(environ: Mapping[str, str] | None = None) -> int | None:
    """OMP_NUM_THREADS where the user set it; None for torchrun's own 1, which starves a CPU rank."""
    text = (os.environ if environ is None else environ).get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 1 else None
