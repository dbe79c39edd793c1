"""How a job is, decided from what the cluster says of it and of its pods."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.cluster.kinds import Status
from launcher.cluster.kubernetes.pods import Pod

_EXIT_CODE = re.compile(r"failed with exit code (\d+)")
_STOPPED = 128
_OUR_ERROR = re.compile(r"^shardrun: error: (.*)$", re.MULTILINE)
_MEANINGS = {2: "refused", 3: "a rank failed", 1: "a fault of shardrun's own"}


def decide(job: Mapping[str, Any], pods: Sequence[Pod], trouble: str = "") -> Status:
    """`job` is the Job or TrainJob; `trouble` is the latest warning of the cluster where there are no pods."""
    if job["metadata"].get("deletionTimestamp"):
        return Status(state="cancelled", word="Deleting", detail="it is being deleted")
    conditions = {
        found.get("type", ""): found
        for found in (job.get("status") or {}).get("conditions") or []
        if found.get("status") == "True"
    }
    if "Complete" in conditions:
        return Status(state="done", word="Complete", exit_code=0)
    if failed := conditions.get("Failed") or conditions.get("FailureTarget"):
        return _failed(failed, pods)
    if "Suspended" in conditions:
        return Status(state="waiting", word="Suspended", detail=str(conditions["Suspended"].get("message", "")))
    return _not_ended(wanted_pods(job), pods, trouble)


def wanted_pods(job: Mapping[str, Any]) -> int:
    spec = job.get("spec") or {}
    trainer = spec.get("trainer") or {}
    return int(spec.get("completions") or trainer.get("numNodes") or 1)


def _failed(condition: Mapping[str, Any], pods: Sequence[Pod]) -> Status:
    word = str(condition.get("reason") or "Failed")
    message = str(condition.get("message") or "")
    if word == "DeadlineExceeded":
        return Status(state="failed", word=word, detail="it was ended by the time limit, cluster.time_s")
    first = first_failed(pods)
    if first is None:
        code = _EXIT_CODE.search(message)
        return Status(state="failed", word=word, detail=message, exit_code=int(code[1]) if code else None)
    return Status(state="failed", word=word, detail=_how_it_ended(first), exit_code=first.exit_code)


def first_failed(pods: Sequence[Pod]) -> Pod | None:
    """The pod that failed first by itself: those that were stopped behind it end with 128 + n."""
    failed = [pod for pod in pods if pod.failed]
    return min(
        failed,
        key=lambda pod: (pod.reason == "Error" and (pod.exit_code or 0) > _STOPPED, pod.ended_at or "~"),
        default=None,
    )


def _how_it_ended(pod: Pod) -> str:
    code = pod.exit_code
    how = "failed" if code is None else f"ended with exit code {code}"
    said = _OUR_ERROR.findall(pod.message)
    more = said[-1] if said else _MEANINGS.get(code or 0, "")
    if pod.reason == "OOMKilled":
        more = "it was over its memory limit, cluster.memory (cluster.shm counts too)"
    elif pod.reason not in ("", "Error"):
        more = ": ".join(filter(None, (pod.reason, pod.message.strip())))
    return f"pod {pod.name} {how}{': ' if more else ''}{more}"


def _not_ended(wanted: int, pods: Sequence[Pod], trouble: str) -> Status:
    going = [pod for pod in pods if pod.started or pod.ended]
    if len(going) >= wanted:
        ended = sum(pod.ended for pod in pods)
        return Status(state="running", word="Running", detail=f"{ended} of {wanted} pods have ended" if ended else "")
    if not pods:
        return Status(state="waiting", word="Pending", detail=trouble or "no pod yet")
    return Status(state="waiting", word="Pending", detail=waiting_text(wanted, pods))


def waiting_text(wanted: int, pods: Sequence[Pod]) -> str:
    """'1 of 2 pods runs; demo-1-x waits: Unschedulable: ...': the pods that wait for the same thing together."""
    reasons: dict[str, list[str]] = {}
    for pod in pods:
        if pod.waits_for:
            reasons.setdefault(pod.waits_for, []).append(pod.name)
    going = sum(pod.started or pod.ended for pod in pods)
    waits = [f"{_names(names)} for {reason}" for reason, names in reasons.items()]
    return "; ".join([f"{going} of {wanted} pods run", *(f"waiting: {text}" for text in waits)])


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
