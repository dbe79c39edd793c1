"""Variables that hurt, folders that hide ours, the clock, and the tools of clusters."""

from pathlib import Path

import pytest

from launcher.doctor.asking import Answer
from launcher.doctor.clock import clock, synchronised
from launcher.doctor.surroundings import hiding, hurting, launch_findings
from launcher.doctor.tools import tool


def test_a_shell_without_launch_variables_is_good() -> None:
    assert [finding.verdict for finding in launch_findings({"HOME": "/"})] == ["good"]


def test_a_stray_rank_is_bad_with_what_every_command_would_say() -> None:
    (finding,) = launch_findings({"RANK": "3"})
    assert finding.verdict == "bad"
    assert "WORLD_SIZE is not set although RANK is" in finding.found
    assert finding.remedy == "unset RANK"


def test_the_variables_of_a_whole_run_left_in_a_shell_are_bad() -> None:
    left = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    (finding,) = launch_findings(left)
    assert finding.verdict == "bad"
    assert "waits for the others" in finding.found
    assert finding.remedy == "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"


def test_an_address_alone_does_no_harm() -> None:
    assert [finding.verdict for finding in launch_findings({"MASTER_ADDR": "node1"})] == ["note"]


@pytest.mark.parametrize(
    ("variable", "value", "verdicts"),
    [
        ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1", ["bad"]),
        ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0", []),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", ["note"]),
        ("TORCH_DISTRIBUTED_DEBUG", "INFO", []),
        ("NCCL_P2P_DISABLE", "1", ["note"]),
        ("NCCL_P2P_DISABLE", "", []),
    ],
)
def test_variables_that_hurt_are_named_with_their_value(variable: str, value: str, verdicts: list[str]) -> None:
    found = list(hurting({variable: value}))
    assert [finding.verdict for finding in found] == verdicts
    assert all(finding.name == variable and value in finding.found for finding in found)


def test_another_package_of_our_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "a" / "model" / "__init__.py").write_text("")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "parallel.py").write_text("")
    assert hiding([tmp_path / "a"], tmp_path) == [tmp_path / "a" / "model"]
    assert hiding([tmp_path / "b"], tmp_path) == [tmp_path / "b" / "parallel.py"]
    assert hiding([tmp_path / "b"], tmp_path / "b") == []
    assert hiding([tmp_path / "none"], tmp_path) == []


@pytest.mark.parametrize(
    ("now", "jumped_s", "verdict"), [(1_795_000_000, 0.0001, "good"), (0, 0.0, "bad"), (1_795_000_000, -3.0, "bad")]
)
def test_a_clock_that_was_never_set_or_jumps_is_bad(now: float, jumped_s: float, verdict: str) -> None:
    assert clock(now, jumped_s).verdict == verdict


@pytest.mark.parametrize(("state", "verdict"), [(0, "good"), (5, "note"), (None, "unknown"), (-1, "unknown")])
def test_the_kernel_says_whether_a_server_holds_the_clock(state: int | None, verdict: str) -> None:
    assert synchronised(state).verdict == verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (None, "note"),
        (Answer(code=0, text="slurm-wlm 22.05.8\n"), "good"),
        (Answer(code=1, text="\nsbatch: error: no configuration\n"), "unknown"),
        (Answer(code=None, text=""), "unknown"),
    ],
)
def test_tools_of_clusters_are_never_bad(answer: Answer | None, verdict: str) -> None:
    assert tool("sbatch", answer).verdict == verdict
