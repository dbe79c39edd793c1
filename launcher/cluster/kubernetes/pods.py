"""The pods of a job, as `kubectl get pods -o json` tells of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.cluster.kubernetes.kubectl import kubectl
from launcher.cluster.kubernetes.manifests import CONTAINER, labels
from launcher.cluster.kubernetes.train_job import NODE

_INDEX = "batch.kubernetes.io/job-completion-index"
# What the server says in one word, and what a user can do.
_REMEDIES = {
    "ImagePullBackOff": "see cluster.image and cluster.image_pull_secret",
    "ErrImagePull": "see cluster.image and cluster.image_pull_secret",
    "InvalidImageName": "see cluster.image",
    "CrashLoopBackOff": "see `shardrun logs`",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod: what it waits for, or how it ended."""

    name: str
    index: int | None
    phase: str
    # The container runs.
    started: bool = False
    # Why it does not run yet, in the cluster's words.
    waits_for: str = ""
    exit_code: int | None = None
    # OOMKilled, Evicted and the like.
    reason: str = ""
    # The last lines of its log, where it failed.
    message: str = ""
    ended_at: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed") or self.exit_code is not None

    @property
    def failed(self) -> bool:
        return self.phase == "Failed" or bool(self.exit_code)

    @property
    def had_output(self) -> bool:
        return self.started or self.exit_code is not None


def container_of(target: str) -> str:
    return NODE if target == "TrainJob" else CONTAINER


def pods_of(name: str, namespace: str, target: str, owner: str = "") -> list[Pod]:
    """The job's pods by index. `owner`: the Job's uid; pods of an earlier one of that name are left out."""
    selector = ",".join(f"{key}={value}" for key, value in labels(name).items())
    found = json.loads(kubectl(["get", "pods", f"--selector={selector}", "--output=json"], namespace))
    items = [item for item in found["items"] if not owner or owner in _owners(item)]
    pods = [read_pod(item, container_of(target)) for item in items]
    return sorted(pods, key=lambda pod: (pod.index is None, pod.index or 0, pod.name))


def _owners(item: Mapping[str, Any]) -> list[str]:
    return [owner.get("uid", "") for owner in item["metadata"].get("ownerReferences") or []]


def read_pod(item: Mapping[str, Any], container: str) -> Pod:
    """A Pod object of the cluster."""
    meta, status = item["metadata"], item.get("status") or {}
    index = str((meta.get("annotations") or {}).get(_INDEX, ""))
    states = [
        known.get("state") or {} for known in status.get("containerStatuses") or [] if known.get("name") == container
    ]
    state = states[0] if states else {}
    ended = state.get("terminated") or {}
    return Pod(
        name=meta["name"],
        index=int(index) if index.isdecimal() else None,
        phase=status.get("phase", "Unknown"),
        started="running" in state,
        waits_for="" if ended or "running" in state else _waits_for(status, state.get("waiting") or {}),
        exit_code=ended.get("exitCode"),
        reason=ended.get("reason") or status.get("reason") or "",
        message=ended.get("message") or status.get("message") or "",
        ended_at=ended.get("finishedAt") or "",
    )


def _waits_for(status: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    if waiting.get("reason"):
        remedy = _REMEDIES.get(waiting["reason"], "")
        return "; ".join(filter(None, (": ".join(filter(None, (waiting["reason"], waiting.get("message")))), remedy)))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', 'no node yet')}"
    return "a node" if status.get("phase") == "Pending" else ""
