"""How a Slurm job is, from what `scontrol show job` prints and from the result in its folder."""

from pathlib import Path

import pytest

from launcher.cluster.slurm.states import decide, decide_forgotten, read_fields, read_result

SHOWN = """\
JobId=17 JobName=demo
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   Priority=4294901750 Nice=0 Account=(null) QOS=(null)
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={code}
   RunTime=00:00:12 TimeLimit=01:00:00 TimeMin=N/A
   NodeList=n[1-2]
   NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   Command=/shared/my jobs/demo-1/job.sbatch
   WorkDir=/shared/my jobs
   StdErr=/shared/JobState=RUNNING/slurm-17.log
   StdOut=/shared/JobState=RUNNING/slurm-17.log
   Power=
"""


def fields(state: str, reason: str = "None", code: str = "0:0") -> dict[str, str]:
    return read_fields(SHOWN.format(state=state, reason=reason, code=code))


def test_paths_may_hold_spaces_and_what_looks_like_another_field() -> None:
    read = fields("COMPLETED")
    assert read["Command"] == "/shared/my jobs/demo-1/job.sbatch"
    assert read["StdOut"] == "/shared/JobState=RUNNING/slurm-17.log"
    assert (read["JobState"], read["TimeLimit"], read["CPUs/Task"]) == ("COMPLETED", "01:00:00", "1")


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Resources", "the nodes that it needs are in use (Resources)"),
        ("Priority", "jobs with a higher priority come first (Priority)"),
        ("PartitionConfig", "its partition does not allow what it asks for: it will not start as it is"),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-2]", "down, reserved or drained: _UnavailableNodes:n[1-2] (ReqNodeNot"),
        ("QOSSomethingNew", "Slurm says: QOSSomethingNew"),
    ],
)
def test_a_job_that_waits_tells_why_in_plain_words(reason: str, says: str) -> None:
    status = decide(fields("PENDING", reason), None)
    assert status.state == "waiting"
    assert says in status.detail


@pytest.mark.parametrize(
    ("state", "code", "result", "decided", "exit_code", "says"),
    [
        ("RUNNING", "0:0", None, "running", None, "on n[1-2] for 00:00:12"),
        ("COMPLETING", "0:0", None, "running", None, "it is ending: processes are still there on n[1-2]"),
        ("COMPLETING", "0:0", 143, "running", None, "it is ending: processes are still there on n[1-2]"),
        ("COMPLETING", "0:0", 0, "done", 0, "took 00:00:12"),
        ("COMPLETING", "0:0", 3, "failed", 3, "a rank failed; its output says why"),
        ("COMPLETED", "0:0", 0, "done", 0, "took 00:00:12"),
        ("FAILED", "3:0", 3, "failed", 3, "a rank failed; its output says why"),
        ("FAILED", "2:0", None, "failed", 2, "refused; its output says why"),
        ("FAILED", "0:9", None, "failed", 137, "stopped by signal 9"),
        ("TIMEOUT", "0:15", 143, "failed", 143, "it ran into its time limit of 01:00:00"),
        ("NODE_FAIL", "0:0", None, "failed", None, "a node was lost"),
        ("CANCELLED", "0:0", 143, "cancelled", 143, ""),
        ("NEWSTATE", "0:0", None, "unknown", None, ""),
    ],
)
def test_each_state_of_slurm_is_one_of_ours(
    state: str, code: str, result: int | None, decided: str, exit_code: int | None, says: str
) -> None:
    status = decide(fields(state, code=code), result)
    assert (status.state, status.word, status.exit_code) == (decided, state, exit_code)
    assert says in status.detail


def test_a_job_that_slurm_has_forgotten_is_as_its_result_says() -> None:
    assert decide_forgotten(0).state == "done"
    assert (decide_forgotten(3).state, decide_forgotten(3).exit_code) == ("failed", 3)
    assert decide_forgotten(143).detail == "stopped by signal 15"
    unknown = decide_forgotten(None)
    assert unknown.state == "unknown"
    assert "it left no result behind" in unknown.detail


def test_a_result_counts_only_where_it_is_whole_and_of_this_job(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert read_result(str(tmp_path), "17") is None
    file.write_text('{"job_id": "17", "exit_code": 3, "ended_at": 1}')
    assert read_result(str(tmp_path), "17") == 3
    assert read_result(str(tmp_path), "18") is None
    assert read_result("", "17") is None
    for broken in ("", "{", "[]", "{}", '{"job_id": "17", "exit_code": null}', "\x00"):
        file.write_text(broken)
        assert read_result(str(tmp_path), "17") is None
