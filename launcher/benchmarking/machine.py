"""What the measuring was done on."""

import platform
from pathlib import Path

import torch

from launcher.benchmarking.results import Machine
from parallel.environment import cpu_cores


def describe_machine(device: torch.device) -> Machine:
    """This host, its torch, and the device that is computed on."""
    return Machine(
        processor=_processor(),
        cores=cpu_cores(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        torch=torch.__version__,
    )


def _processor() -> str:
    """The processor's name as the system gives it; its kind where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
