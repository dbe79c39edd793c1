"""What NVIDIA's driver says, of healthy hosts and of sick ones. Texts as nvidia-smi and /proc have them."""

import pytest

from launcher.doctor.asking import Answer
from launcher.doctor.checks import Finding
from launcher.doctor.driver import (
    Driver,
    _refusal,
    _without_tool,
    driver_findings,
    module_version,
    parse_apps,
    parse_gpus,
    too_old,
)

TWO = """\
0, GPU-6d1f0000-0000-0000-0000-000000000000, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 81042, Default, Disabled
1, GPU-6d1f0000-0000-0000-0000-000000000001, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 1204, Default, Disabled
"""
HELD = "GPU-6d1f0000-0000-0000-0000-000000000001, 4711, /usr/bin/python3, 79838\n"


def of(text: str, apps: str = "") -> list[Finding]:
    return list(driver_findings(Driver(gpus=parse_gpus(text), apps=parse_apps(apps))))


def test_gpus_are_read_with_their_memory() -> None:
    gpus = parse_gpus(TWO)
    assert [(gpu.index, gpu.driver, gpu.mode, gpu.mig) for gpu in gpus] == [
        (0, "550.54.15", "Default", False),
        (1, "550.54.15", "Default", False),
    ]
    assert gpus[0].total_bytes == 81559 * 2**20


def test_memory_that_another_process_holds_is_bad_and_names_it() -> None:
    findings = of(TWO, HELD)
    assert [finding.verdict for finding in findings] == ["good", "bad"]
    assert "550.54.15, 2 GPUs: NVIDIA H100 80GB HBM3" in findings[0].found
    assert findings[1].found.startswith("GPU 1 has 1.26 GB of 85.5 GB free")
    assert "/usr/bin/python3 (pid 4711)" in findings[1].found


def test_a_little_memory_that_a_desktop_holds_is_only_noted() -> None:
    (text,) = (line for line in TWO.splitlines() if line.startswith("0"))
    findings = of(text.replace("81042", "60000"))
    assert [finding.verdict for finding in findings] == ["good", "note"]
    assert "the driver names no process" in findings[1].found


@pytest.mark.parametrize(
    ("mode", "mig", "verdict", "says"),
    [
        ("Prohibited", "Disabled", "bad", "nobody compute"),
        ("Exclusive_Process", "Disabled", "note", "one process only"),
        ("Default", "Enabled", "note", "MIG"),
    ],
)
def test_modes_in_which_ranks_cannot_share_are_told(mode: str, mig: str, verdict: str, says: str) -> None:
    finding = of(f"0, GPU-1, NVIDIA A100, 535.1, 40960, 40900, {mode}, {mig}\n")[-1]
    assert (finding.name, finding.verdict) == ("GPU mode", verdict)
    assert says in finding.found


def test_values_that_the_driver_does_not_have_are_no_memory() -> None:
    (gpu,) = parse_gpus("0, GPU-1, NVIDIA GB10, 580.95.05, [N/A], [N/A], Default, [N/A]\n")
    assert (gpu.total_bytes, gpu.free_bytes, gpu.mig) == (-1, -1, False)
    assert [finding.name for finding in of("0, GPU-1, NVIDIA GB10, 580.95.05, [N/A], [N/A], Default, [N/A]\n")] == [
        "driver"
    ]


def test_a_driver_that_sees_no_gpu_is_bad() -> None:
    (finding,) = of("No devices were found\n")
    assert finding.verdict == "bad"


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        (18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54\n", "reboot"),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", "modprobe nvidia"),
        (6, "something else\n", "by hand"),
        (None, "", "dmesg"),
    ],
)
def test_a_driver_that_does_not_answer_is_bad_with_its_remedy(code: int | None, text: str, remedy: str) -> None:
    finding = _refusal(Answer(code=code, text=text))
    assert finding.verdict == "bad"
    assert remedy in finding.remedy
    assert ("hangs" in finding.found) == (code is None)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs@host)\n"
            "GCC version:  gcc version 11.4.0\n",
            "550.54.14",
        ),
        ("", None),
        (None, None),
    ],
)
def test_the_kernel_modules_version_is_read(text: str | None, version: str | None) -> None:
    assert module_version(text) == version


def test_a_gpu_on_the_bus_without_a_driver_is_bad_and_none_at_all_is_fine() -> None:
    assert _without_tool(None, ["0000:01:00.0"])[1][0].verdict == "bad"
    assert "0000:01:00.0" in _without_tool(None, ["0000:01:00.0"])[1][0].found
    assert _without_tool(None, [])[1][0].verdict == "note"
    module = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat\n"
    assert _without_tool(module, ["0000:01:00.0"])[1][0].verdict == "unknown"


@pytest.mark.parametrize(
    ("driver", "cuda", "oldest"),
    [
        ("470.82.01", "12.4", "525.60.13"),
        ("525.60.13", "12.8", None),
        ("525.60.9", "12.1", "525.60.13"),
        ("570.133.20", "13.0", "580"),
        ("580.65.06", "13.0", None),
        ("300.1", "14.0", None),
    ],
)
def test_a_driver_older_than_torchs_cuda_wants_is_found(driver: str, cuda: str, oldest: str | None) -> None:
    assert too_old(driver, cuda) == oldest
