"""How a Slurm job is, decided from what `scontrol show job` prints and from the result that the job's script left."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from launcher.cluster.kinds import Status
from launcher.cluster.slurm.script import RESULT

State = Literal["waiting", "running", "done", "failed", "cancelled", "unknown"]

# Why a job waits, in plain words; Slurm has a hundred more reasons.
REASONS = {
    "Priority": "jobs with a higher priority come first",
    "Resources": "the nodes that it needs are in use",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job that it depends on did not end as wanted: it will never start",
    "BeginTime": "its time to begin has not come",
    "JobHeldUser": "its user holds it back (scontrol release JOB_ID lets it go)",
    "JobHeldAdmin": "an administrator holds it back",
    "PartitionConfig": "its partition does not allow what it asks for: it will not start as it is",
    "PartitionTimeLimit": "its time limit is above that of the partition: it will not start; lower cluster.time",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows: it will not start",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "ReqNodeNotAvail": "nodes that it needs are down, reserved or drained",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node has what it asks for: it will not start",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as the quality of service allows",
    "AssocMaxJobsLimit": "the account has as many jobs running as it is allowed",
    "Licenses": "it waits for a licence",
    "Reservation": "it waits for its reservation",
}
_STATES: dict[str, State] = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_FED": "waiting",
    "REQUEUE_HOLD": "waiting",
    "SPECIAL_EXIT": "waiting",
    "RESV_DEL_HOLD": "waiting",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
    "TIMEOUT": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "PREEMPTED": "failed",
    "BOOT_FAIL": "failed",
    "DEADLINE": "failed",
    "REVOKED": "failed",
}
_DETAILS = {
    "CONFIGURING": "its nodes are being made ready",
    "SUSPENDED": "it is suspended",
    "TIMEOUT": "it ran into its time limit of {limit}",
    "NODE_FAIL": "a node was lost",
    "OUT_OF_MEMORY": "it used more host memory than it had: raise cluster.mem",
    "PREEMPTED": "it had to make room for another job; cluster.requeue lets Slurm start it again",
    "BOOT_FAIL": "its nodes could not be made ready",
    "DEADLINE": "it could not end before its deadline",
}
_MEANINGS = {1: "a fault of shardrun's own", 2: "refused", 3: "a rank failed"}
_SEE = "; its output says why"
_STOPPED = 128
# These may hold spaces, and have a line each.
_OWN_LINES = frozenset({"Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment"})


def read_fields(text: str) -> dict[str, str]:
    """The fields of one job, as `scontrol show job` prints them."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition("=")
        if name in _OWN_LINES:
            fields[name] = value
        else:
            fields |= dict(re.findall(r"(\S+?)=(\S*)", line))
    return fields


def decide(fields: Mapping[str, str], result: int | None) -> Status:
    """`result`: the exit code that the job's script left behind, if it did."""
    word = fields.get("JobState", "")
    state = _STATES.get(word, "unknown")
    if word == "COMPLETING" and result is not None and result < _STOPPED:
        # All has been said; but Slurm waits for its nodes, for minutes where one is lost.
        state = "failed" if result else "done"
    if state == "waiting":
        return Status(state=state, word=word, detail=_DETAILS.get(word) or _why(fields.get("Reason", "")))
    nodes = fields.get("NodeList", "")
    detail = _DETAILS.get(word, "").format(nodes=nodes, limit=fields.get("TimeLimit", ""))
    if state == "running":
        detail = detail or (f"it is ending: processes are still there on {nodes}" if word == "COMPLETING" else "")
        return Status(state=state, word=word, detail=detail or f"on {nodes} for {fields.get('RunTime', '')}")
    if state == "done":
        return Status(state=state, word=word, detail=f"took {fields.get('RunTime', '')}", exit_code=0)
    code = result if result is not None else _exit_code(fields.get("ExitCode", ""))
    if state == "failed":
        code = code or None  # a node that was lost left none
        return Status(state=state, word=word, detail=detail or _meaning(code), exit_code=code)
    return Status(state=state, word=word, detail=detail, exit_code=result)


def decide_forgotten(result: int | None) -> Status:
    """How a job is of which Slurm knows nothing any more."""
    if result is None:
        why = "Slurm has forgotten it, and it left no result behind: it was killed, or it never started"
        return Status(state="unknown", word="", detail=why)
    if result:
        return Status(state="failed", word="", detail=_meaning(result), exit_code=result)
    return Status(state="done", word="", exit_code=0)


def read_result(folder: str, job_id: str) -> int | None:
    """The exit code in the job's folder; None where there is none, or another job's."""
    if not folder:
        return None
    try:
        found = json.loads((Path(folder) / RESULT).read_text(encoding="utf-8"))
        return int(found["exit_code"]) if found["job_id"] == job_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why(reason: str) -> str:
    """Slurm's reason in plain words. It may go on behind a comma, with the nodes that are not there."""
    if reason in ("", "None"):
        return "Slurm has not looked at it yet"
    name, comma, more = reason.partition(",")
    words = REASONS.get(name)
    return f"{words}{comma and ': '}{more} ({name})" if words else f"Slurm says: {reason}"


def _exit_code(text: str) -> int | None:
    """scontrol's `3:0`: exit code and signal."""
    code, _, number = text.partition(":")
    if not (code.isdecimal() and number.isdecimal()):
        return None
    return _STOPPED + int(number) if int(number) else int(code)


def _meaning(code: int | None) -> str:
    if code is None:
        return ""
    if code > _STOPPED:
        return f"stopped by signal {code - _STOPPED}"
    return _MEANINGS.get(code, "failed") + _SEE
