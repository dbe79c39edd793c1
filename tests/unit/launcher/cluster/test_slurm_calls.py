"""Slurm's commands as programs that may not be there or may not answer, and what sbatch is given as its environment."""

from pathlib import Path

import pytest

from launcher.cluster.slurm.calls import ControllerError, call, submitting_environment
from parallel.errors import RefusedError


def program(folder: Path, text: str) -> str:
    path = folder / "sbatch"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_host_without_slurm_is_told_where_to_go() -> None:
    with pytest.raises(RefusedError, match="no nosuch-sbatch on this host: type this on a login node of the cluster"):
        call(["nosuch-sbatch", "--version"])


def test_a_program_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text("x")
    with pytest.raises(RefusedError, match="cannot be run: Permission denied"):
        call([str(tmp_path / "sbatch")])


def test_a_controller_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match=r"controller cannot be reached .*no answer within 0.2 s.*scontrol ping"):
        call([program(tmp_path, "exec sleep 5")], limit_s=0.2)


def test_a_controller_that_refuses_is_told_with_slurms_words(tmp_path: Path) -> None:
    words = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    with pytest.raises(ControllerError, match=r"Unable to contact slurm controller \(connect failure\)"):
        call([program(tmp_path, words)])


def test_what_it_complains_of_is_one_line_without_the_programs_name(tmp_path: Path) -> None:
    said = "echo 'sbatch: error: invalid partition: x' >&2; echo 'allocation failure: no' >&2; echo out; exit 1"
    answer = call([program(tmp_path, said)])
    assert (answer.code, answer.out) == (1, "out\n")
    assert answer.reason == "invalid partition: x; allocation failure: no"
    assert call([program(tmp_path, "exit 7")]).reason == "exit code 7, no reason"


def test_what_another_job_left_and_what_would_win_over_the_script_is_not_handed_on() -> None:
    environ = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JOB_ID": "9",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURMD_NODENAME": "n1",
        "SBATCH_PARTITION": "other",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_REQUEUE": "1",
        "SBATCH_OUTPUT": "/elsewhere",
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_RESERVATION": "course",
    }
    options = ["--partition=gpu", "--time=30", "--no-requeue", "--output=/x"]
    assert submitting_environment(environ, options) == {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_RESERVATION": "course",
    }
