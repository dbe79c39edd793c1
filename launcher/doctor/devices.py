"""Check: torch and the GPUs that it reaches, against those that the driver sees; ranks for each device."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.doctor.asking import Answer, ask
from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, plural, trying, unknown
from launcher.doctor.driver import Driver, ask_driver, read_driver, too_old
from launcher.doctor.processes import own_command
from launcher.version import version
from parallel.environment import Environment, Hardware, choose_placement
from parallel.errors import RefusedError

_PROBE_S = 22.0
_OLDEST_TORCH = (2, 11)
_REINSTALL = "install torch again in this environment (pip install --force-reinstall torch)"
# What CUDA's errors mean, by a part of their text.
_CUDA_REMEDIES = {
    "system not yet initialized": "start NVIDIA's fabric manager (systemctl start nvidia-fabricmanager)",
    "unknown error": "reload the driver (rmmod nvidia_uvm; modprobe nvidia_uvm), or reboot the host",
    "out of memory": "end what holds its memory (see GPU memory)",
    "no kernel image": "this torch was not built for such a GPU: install a build that is",
    "uncorrectable ECC": "the GPU's memory is damaged: reset it (nvidia-smi --gpu-reset), or have it replaced",
    "busy or unavailable": "another process has it for itself (nvidia-smi -c 0 lets several in)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    """What the probe said. `facts` is empty where torch could not be loaded; `errors` are by GPU."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    import_error: str = ""
    errors: Mapping[int, str] = field(default_factory=dict)
    # The GPU that was being touched when the probe stopped answering.
    stuck_at: int | None = None
    hangs: bool = False

    @property
    def devices(self) -> int:
        return int(self.facts.get("devices", 0))


def look(question: Question) -> Findings:
    probe = ask(own_command("torch_probe"), _PROBE_S)
    asked = ask_driver()
    yield trying("driver", "asking nvidia-smi", "the driver hangs: look for NVRM or Xid in `dmesg`; reboot the host")
    driver, findings = read_driver(asked)
    yield from findings
    yield trying("torch", "importing torch", _REINSTALL)
    torch = parse_probe(probe.answer()) if probe is not None else TorchFacts(import_error="cannot be started")
    yield from torch_findings(torch)
    if torch.facts:
        yield from compared(driver, torch, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if torch.facts and not torch.hangs:
        yield placement(question, torch, os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_probe(answer: Answer) -> TorchFacts:
    """What the probe's lines say. Lines of other kinds, as warnings of libraries, are passed over."""
    facts: dict[str, Any] = {}
    errors: dict[int, str] = {}
    touching: int | None = None
    for said in _objects(answer.text):
        if "import_error" in said:
            return TorchFacts(import_error=said["import_error"])
        if "touching" in said:
            touching = said["touching"]
        elif "device" in said:
            touching = None
            if said["error"]:
                errors[said["device"]] = said["error"]
        else:
            facts |= said
    if not facts and not answer.hangs:
        return TorchFacts(import_error=f"ends with exit code {answer.code}: {answer.first_line}")
    return TorchFacts(facts=facts, errors=errors, stuck_at=touching, hangs=answer.hangs)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue


def torch_findings(torch: TorchFacts) -> Iterator[Finding]:
    """Which torch this is, and whether it loads."""
    here = f"Python {platform.python_version()}, shardrun {version()}"
    if torch.import_error:
        yield bad("torch", f"cannot be imported: {torch.import_error} ({here})", _REINSTALL)
        return
    facts = torch.facts
    if not facts:
        yield bad(
            "torch",
            f"its import does not end within {_PROBE_S:g} s ({here})",
            "its files stand on a slow or hanging disk: install it on a local one; or a driver hangs (see driver)",
        )
        return
    built = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "no CUDA"
    nccl = f", NCCL {facts['nccl_version']}" if facts["nccl_version"] else ""
    found = f"{facts['torch']}, built with {built}{nccl}; imported in {facts['import_s']} s; {here}"
    if _release(facts["torch"]) < _OLDEST_TORCH:
        yield bad("torch", found, f"install torch {'.'.join(map(str, _OLDEST_TORCH))} or newer")
    elif not facts["gloo"]:
        yield bad("torch", f"{found}; built without gloo", "install a build of torch that has gloo")
    else:
        yield good("torch", found)


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("+")[0].split(".")[:2] if part.isdecimal())


def compared(driver: Driver, torch: TorchFacts, visible: str | None) -> Iterator[Finding]:
    """What torch reaches, against what the driver sees."""
    there = len(driver.gpus) if driver.gpus is not None else None
    if not torch.facts["cuda"]:
        if there:
            yield bad(
                "GPUs",
                f"{plural(there, 'GPU')} here, but this torch was built without CUDA",
                "install torch's build for CUDA (pytorch.org names the command)",
            )
        return
    if torch.hangs and "devices" not in torch.facts:
        yield bad("GPUs", "torch hangs as it counts them", "the driver hangs: look for Xid in `dmesg`; reboot the host")
        return
    old = too_old(driver.version, torch.facts["cuda"]) if driver.version else None
    if torch.stuck_at is not None and torch.hangs:
        found = f"GPU {torch.stuck_at} hangs when it is touched"
        yield bad("GPUs", found, "look for Xid in `dmesg`; reset it, or leave it out with CUDA_VISIBLE_DEVICES")
    if old and (torch.devices == 0 or torch.errors):
        yield bad(
            "GPUs",
            f"the driver {driver.version} is too old for CUDA {torch.facts['cuda']}, which torch was built with",
            f"install driver {old} or newer, or a torch that was built with an older CUDA",
        )
        return
    yield from _errors(torch)
    yield from _counted(driver, torch, visible, there)


def _errors(torch: TorchFacts) -> Iterator[Finding]:
    for index, error in torch.errors.items():
        remedies = (remedy for part, remedy in _CUDA_REMEDIES.items() if part in error)
        yield bad("GPUs", f"GPU {index}: {error}", next(remedies, "look for Xid in `dmesg`; reset it, or leave it out"))


def _counted(driver: Driver, torch: TorchFacts, visible: str | None, there: int | None) -> Iterator[Finding]:
    shown = f"CUDA_VISIBLE_DEVICES={visible!r}"
    if there is None or any(gpu.mig for gpu in driver.gpus or ()):
        yield unknown("GPUs", f"torch sees {torch.devices}; how many the driver has is not known")
        return
    expected = there if visible is None else len(visible_devices(visible, there))
    if torch.devices != expected:
        yield bad(
            "GPUs",
            f"torch sees {torch.devices} of the {there} that the driver has{f' ({shown})' if visible else ''}",
            "look at the lines on driver and torch; in a container start it with all its GPUs",
        )
    elif expected < there:
        word = note if expected else unknown
        yield word("GPUs", f"torch sees {expected} of {there}: {shown}", "unset CUDA_VISIBLE_DEVICES to use all")
    elif there and not torch.errors and torch.stuck_at is None:
        yield good("GPUs", f"torch sees and reaches {'it' if there == 1 else f'all {there}'}")


def visible_devices(text: str, count: int) -> list[str]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: all before the first unknown one; none where one comes twice."""
    found: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if not word.startswith(("GPU-", "MIG-")) and not (word.isdecimal() and int(word) < count):
            break
        found.append(word)
    return found if len(set(found)) == len(found) else []


def placement(question: Question, torch: TorchFacts, visible: str | None) -> Finding:
    """What a run with so many ranks would choose, by the rule that it follows itself."""
    ranks = question.ranks or torch.devices or question.usual_ranks
    env = Environment(world_size=ranks, local_world_size=ranks, launched=True)
    hardware = Hardware(
        cuda_devices=torch.devices,
        cuda_built=bool(torch.facts["cuda"]),
        nccl_built=bool(torch.facts["nccl"]),
        visible_devices=visible,
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    try:
        chosen = choose_placement(env, hardware, question.device)
    except RefusedError as error:
        return bad("ranks", str(error), "start fewer ranks here, or choose another device")
    return good("ranks", f"{plural(ranks, 'rank')}: {chosen.reason}")
