"""What NVIDIA's driver says: texts of nvidia-smi and of /proc, read without torch."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.amounts import human
from launcher.doctor.asking import Answer, Asked, ask
from launcher.doctor.checks import Finding, bad, good, note, plural, unknown

ANSWER_S = 8.0
_GPU_FIELDS = "index,uuid,name,driver_version,memory.total,memory.free,compute_mode,mig.mode.current"
_APP_FIELDS = "gpu_uuid,pid,process_name,used_memory"
_VERSION = re.compile(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_GPU_FILES = ("nvidia[0-9]*", "dxg", "nvhost*", "nvmap", "kfd")
_PCI_NVIDIA = "0x10de"
_PCI_DISPLAY = "0x03"
# Oldest driver for each CUDA release (NVIDIA, CUDA Compatibility, "Minor Version Compatibility").
_OLDEST = {11: "450.80.02", 12: "525.60.13", 13: "580"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver sees it. Memory is -1 where it does not say."""

    index: int
    uuid: str
    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    mode: str
    mig: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A process that holds memory of a GPU."""

    uuid: str
    pid: int
    name: str
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What was found out. `gpus` is None where the driver could not be asked."""

    gpus: Sequence[Gpu] | None
    apps: Sequence[App] = ()

    @property
    def version(self) -> str | None:
        return self.gpus[0].driver if self.gpus else module_version(_read("/proc/driver/nvidia/version"))


def ask_driver() -> tuple[Asked | None, Asked | None]:
    """Start asking for GPUs and for who uses them."""
    queries = (f"--query-gpu={_GPU_FIELDS}", f"--query-compute-apps={_APP_FIELDS}")
    gpus, apps = (ask(["nvidia-smi", query, "--format=csv,noheader,nounits"], ANSWER_S) for query in queries)
    return gpus, apps


def parse_gpus(text: str) -> list[Gpu]:
    """GPUs of nvidia-smi's table. Lines of other kinds are passed over."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        Gpu(
            index=int(index),
            uuid=uuid,
            name=name,
            driver=driver,
            total_bytes=_mebibytes(total),
            free_bytes=_mebibytes(free),
            mode=mode,
            mig=mig == "Enabled",
        )
        for index, uuid, name, driver, total, free, mode, mig in (row for row in rows if len(row) == 8)
        if index.isdecimal()
    ]


def parse_apps(text: str) -> list[App]:
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        App(uuid=uuid, pid=int(pid), name=name, used_bytes=_mebibytes(used))
        for uuid, pid, name, used in (row for row in rows if len(row) == 4)
        if pid.isdecimal()
    ]


def _mebibytes(text: str) -> int:
    return int(text) * 2**20 if text.isdecimal() else -1


def module_version(text: str | None) -> str | None:
    """The version of the loaded kernel module, of /proc/driver/nvidia/version."""
    match = _VERSION.search(text or "")
    return match[1] if match else None


def too_old(driver: str, cuda: str) -> str | None:
    """The oldest driver for what torch was built with, where `driver` is older than that."""
    oldest = _OLDEST.get(int(cuda.partition(".")[0]))
    return oldest if oldest is not None and _numbers(driver) < _numbers(oldest) else None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def read_driver(asked: tuple[Asked | None, Asked | None]) -> tuple[Driver, list[Finding]]:
    """What the driver knows, and what is to be said of it."""
    gpus_asked, apps_asked = asked
    if gpus_asked is None:
        return _without_tool(_read("/proc/driver/nvidia/version"), _pci_gpus())
    answer = gpus_asked.answer()
    if answer.code != 0:
        return Driver(gpus=None), [_refusal(answer)]
    apps = apps_asked.answer() if apps_asked is not None else None
    driver = Driver(gpus=parse_gpus(answer.text), apps=parse_apps(apps.text) if apps and apps.code == 0 else ())
    return driver, list(driver_findings(driver))


def _without_tool(module: str | None, pci: Sequence[str]) -> tuple[Driver, list[Finding]]:
    version = module_version(module)
    if version is not None:
        return Driver(gpus=None), [
            unknown(
                "driver",
                f"NVIDIA's driver {version} is loaded, but nvidia-smi is not there to ask",
                "in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility; else install the driver's tools",
            )
        ]
    if pci:
        return Driver(gpus=None), [
            bad(
                "driver",
                f"{plural(len(pci), 'NVIDIA GPU')} on the bus ({pci[0]}) but no driver is loaded",
                "install NVIDIA's driver and load it (modprobe nvidia); in a container start it with its GPUs "
                "(docker run --gpus all)",
            )
        ]
    return Driver(gpus=()), [note("driver", "no NVIDIA GPU and no driver here")]


def _refusal(answer: Answer) -> Finding:
    """nvidia-smi hangs, or says why it cannot answer."""
    if answer.hangs:
        return bad(
            "driver",
            f"nvidia-smi does not answer within {ANSWER_S:g} s: the driver hangs",
            "look for NVRM or Xid in `dmesg`; reset the GPU, or reboot the host",
        )
    if "version mismatch" in answer.text:
        remedy = "the driver was updated while it was loaded: reboot the host, or reload its kernel modules"
    elif "communicate" in answer.text:
        remedy = "the kernel module is not loaded: modprobe nvidia, and after a kernel update install the driver again"
    else:
        remedy = "run nvidia-smi by hand; in a container start it with its GPUs (docker run --gpus all)"
    return bad("driver", f"nvidia-smi fails (exit code {answer.code}): {answer.first_line}", remedy)


def driver_findings(driver: Driver) -> Iterator[Finding]:
    """The GPUs, and memory that others hold."""
    gpus = driver.gpus or ()
    if not gpus:
        yield bad("driver", "the driver sees no GPU", "give the container or the job its GPUs")
        return
    kinds = ", ".join(sorted({gpu.name for gpu in gpus}))
    yield good("driver", f"{gpus[0].driver}, {plural(len(gpus), 'GPU')}: {kinds}")
    held = [gpu for gpu in gpus if 0 <= gpu.free_bytes < 0.9 * gpu.total_bytes]
    known = [gpu.free_bytes for gpu in gpus if gpu.free_bytes >= 0]
    if known and not held:
        yield good("GPU memory", f"at least {human(min(known))} free on each GPU")
    for gpu in held:
        yield _held(gpu, [app for app in driver.apps if app.uuid == gpu.uuid])
    for gpu in gpus:
        yield from _mode(gpu)


def _held(gpu: Gpu, apps: Sequence[App]) -> Finding:
    found = f"GPU {gpu.index} has {human(gpu.free_bytes)} of {human(gpu.total_bytes)} free"
    if apps:
        found += f"; held by {', '.join(f'{app.name} (pid {app.pid})' for app in apps[:4])}"
    else:
        found += "; the driver names no process that holds it"
    if gpu.free_bytes >= gpu.total_bytes / 2:
        return note("GPU memory", found)
    return bad("GPU memory", found, "end those processes if they are forgotten runs, or leave that GPU out")


def _mode(gpu: Gpu) -> Iterator[Finding]:
    if gpu.mode == "Prohibited":
        yield bad("GPU mode", f"GPU {gpu.index} lets nobody compute (Prohibited)", f"nvidia-smi -i {gpu.index} -c 0")
    elif gpu.mode.startswith("Exclusive"):
        yield note("GPU mode", f"GPU {gpu.index} takes one process only ({gpu.mode}): ranks cannot share it")
    if gpu.mig:
        yield note(
            "GPU mode", f"GPU {gpu.index} is cut in instances (MIG): a rank sees one, and NCCL does not join them"
        )


def _pci_gpus() -> list[str]:
    """Addresses of NVIDIA's display devices on the bus."""
    return [
        folder.name
        for folder in sorted(Path("/sys/bus/pci/devices").glob("*"))
        if (_read(str(folder / "vendor")) or "").strip() == _PCI_NVIDIA
        and (_read(str(folder / "class")) or "").startswith(_PCI_DISPLAY)
    ]


def gpu_files() -> list[Path]:
    """Device files of GPUs; a host without any has none that torch could use."""
    return sorted(path for name in _GPU_FILES for path in Path("/dev").glob(name))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
