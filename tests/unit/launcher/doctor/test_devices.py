"""Torch against the driver: what the probe says, and what follows from both."""

import json

import pytest

from launcher.doctor.asking import Answer
from launcher.doctor.checks import Finding, Question
from launcher.doctor.devices import (
    TorchFacts,
    compared,
    parse_probe,
    placement,
    torch_findings,
    visible_devices,
)
from launcher.doctor.driver import Driver, Gpu

FACTS = {
    "torch": "2.13.0+cu128",
    "cuda": "12.8",
    "hip": None,
    "import_s": 2.5,
    "gloo": True,
    "nccl": True,
    "nccl_version": "2.27.3",
}


def lines(*objects: dict[str, object]) -> str:
    return "a warning of a library\n{not json\n" + "".join(json.dumps(each) + "\n" for each in objects)


def torch_with(devices: int = 2, **errors: str) -> TorchFacts:
    said = [{"device": index, "error": errors.get(f"gpu{index}", "")} for index in range(devices)]
    return parse_probe(Answer(code=0, text=lines(FACTS, {"devices": devices}, *said)))


def driver_with(gpus: int | None, version: str = "550.54.15") -> Driver:
    if gpus is None:
        return Driver(gpus=None)
    made = [
        Gpu(
            index=index,
            uuid=f"GPU-{index}",
            name="NVIDIA H100",
            driver=version,
            total_bytes=80 * 10**9,
            free_bytes=80 * 10**9,
            mode="Default",
            mig=False,
        )
        for index in range(gpus)
    ]
    return Driver(gpus=made)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_a_healthy_host_is_good() -> None:
    finding = only(list(compared(driver_with(2), torch_with(2), None)))
    assert (finding.verdict, finding.found) == ("good", "torch sees and reaches all 2")
    assert only(list(torch_findings(torch_with(2)))).verdict == "good"


def test_torch_that_cannot_be_imported_is_bad_with_its_own_words() -> None:
    facts = parse_probe(Answer(code=0, text=lines({"import_error": "ImportError: libcudart.so.12: cannot open"})))
    finding = only(list(torch_findings(facts)))
    assert finding.verdict == "bad"
    assert "libcudart.so.12" in finding.found


def test_torch_that_crashes_as_it_is_imported_is_bad() -> None:
    finding = only(list(torch_findings(parse_probe(Answer(code=-11, text="")))))
    assert (finding.verdict, "exit code -11" in finding.found) == ("bad", True)


def test_an_import_that_does_not_end_is_bad() -> None:
    finding = only(list(torch_findings(parse_probe(Answer(code=None, text="")))))
    assert finding.verdict == "bad"
    assert "its import does not end" in finding.found


@pytest.mark.parametrize(("change", "says"), [({"torch": "2.6.0"}, "2.6.0"), ({"gloo": False}, "built without gloo")])
def test_a_torch_that_does_not_do_is_bad(change: dict[str, object], says: str) -> None:
    facts = parse_probe(Answer(code=0, text=lines(FACTS | change, {"devices": 0})))
    finding = only(list(torch_findings(facts)))
    assert finding.verdict == "bad"
    assert says in finding.found


def test_gpus_that_torch_was_not_built_for_are_bad() -> None:
    facts = parse_probe(Answer(code=0, text=lines(FACTS | {"cuda": None}, {"devices": 0})))
    finding = only(list(compared(driver_with(8), facts, None)))
    assert finding.verdict == "bad"
    assert "8 GPUs here, but this torch was built without CUDA" in finding.found
    assert list(compared(driver_with(0), facts, None)) == []


def test_a_driver_too_old_for_torchs_cuda_is_named_with_the_version_to_install() -> None:
    finding = only(list(compared(driver_with(2, "470.82.01"), torch_with(0), None)))
    assert finding.verdict == "bad"
    assert "the driver 470.82.01 is too old for CUDA 12.8" in finding.found
    assert "525.60.13" in finding.remedy


def test_an_old_driver_with_which_torch_works_all_the_same_is_let_be() -> None:
    """NVIDIA's compatibility packages make that possible."""
    assert only(list(compared(driver_with(2, "470.82.01"), torch_with(2), None))).verdict == "good"


@pytest.mark.parametrize(
    ("visible", "seen", "verdict"),
    [(None, 1, "bad"), ("0,1", 2, "good"), ("0", 1, "note"), ("", 0, "unknown"), ("0,5", 1, "note"), ("1", 2, "bad")],
)
def test_torch_is_compared_with_what_cuda_visible_devices_leaves(visible: str | None, seen: int, verdict: str) -> None:
    finding = only(list(compared(driver_with(2), torch_with(seen), visible)))
    assert finding.verdict == verdict


def test_a_gpu_that_fails_is_named_with_what_the_error_means() -> None:
    torch = torch_with(2, gpu1="CUDA error: system not yet initialized")
    finding = only(list(compared(driver_with(2), torch, None)))
    assert finding.verdict == "bad"
    assert finding.found == "GPU 1: CUDA error: system not yet initialized"
    assert "fabricmanager" in finding.remedy


def test_a_gpu_that_hangs_when_it_is_touched_is_named() -> None:
    said = lines(FACTS, {"devices": 2}, {"touching": 0}, {"device": 0, "error": ""}, {"touching": 1})
    findings = list(compared(driver_with(2), parse_probe(Answer(code=None, text=said)), None))
    assert [finding.verdict for finding in findings] == ["bad"]
    assert "GPU 1 hangs" in findings[0].found


def test_a_driver_that_hangs_as_gpus_are_counted_is_told() -> None:
    finding = only(list(compared(driver_with(None), parse_probe(Answer(code=None, text=lines(FACTS))), None)))
    assert finding.found == "torch hangs as it counts them"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("2, 0", ["2", "0"]),
        ("", []),
        ("-1", []),
        ("0,9,1", ["0"]),
        ("0,0", []),
        ("GPU-12ab,MIG-3", ["GPU-12ab", "MIG-3"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(text: str, names: list[str]) -> None:
    assert visible_devices(text, 4) == names


def test_ranks_are_placed_by_the_rule_of_a_run() -> None:
    assert "backend nccl" in placement(Question(ranks=2), torch_with(2), None).found
    finding = placement(Question(ranks=4), torch_with(2), None)
    assert finding.verdict == "bad"
    assert "4 ranks on this host but 2 visible CUDA devices" in finding.found
    assert placement(Question(ranks=4, device="cpu"), torch_with(2), None).verdict == "good"
