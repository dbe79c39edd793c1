"""Kubernetes as a cluster that jobs are sent to."""

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.cluster.kinds import Status, Submitted
from launcher.cluster.kubernetes.checks import check, notes
from launcher.cluster.kubernetes.creating import create
from launcher.cluster.kubernetes.kubectl import KubectlError, find_kubectl, kubectl
from launcher.cluster.kubernetes.logs import Show, follow_log, show_log
from launcher.cluster.kubernetes.manifests import job_manifests
from launcher.cluster.kubernetes.naming import cluster_name
from launcher.cluster.kubernetes.pods import pods_of
from launcher.cluster.kubernetes.state import decide
from launcher.cluster.kubernetes.train_job import train_job_manifests
from launcher.console import say
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job
from launcher.settings.job_text import job_text
from launcher.settings.yaml_file import dump_yaml
from parallel.errors import RefusedError

MANIFESTS = "job.k8s.yaml"
JOB_FILE = "job.yaml"
_TYPES = {"Job": "job.batch", "TrainJob": "trainjob.trainer.kubeflow.org"}
# How long `cancel` waits for the pods to go.
_ENDING_S = 15.0
_POLL_S = 1.0


class _Kubernetes:
    """Satisfies `launcher.cluster.kinds.Cluster`."""

    def files(self, job: Job, folder: Path) -> dict[str, str]:
        section = _section(job)
        text = job_text(job)
        check(job, section, text)
        make = train_job_manifests if section.target == "TrainJob" else job_manifests
        return {JOB_FILE: text, MANIFESTS: _heading(job, section, folder) + dump_yaml(make(job, section, text))}

    def submit(self, job: Job, folder: Path) -> Submitted:
        section = _section(job)
        file = folder / MANIFESTS
        for note in notes(job, section):
            say(f"note: {note}")
        if find_kubectl() is None:
            raise RefusedError(
                f"no kubectl on this host; the manifests are in {folder}: "
                f"`kubectl create -f {shlex.quote(str(file))}` where there is one"
            )
        head = create(cluster_name(job, section.target), file, section.namespace or "", section.target)
        return Submitted(
            kind="kubernetes",
            job_id=head.name,
            name=job.name,
            folder=str(folder),
            namespace=head.namespace,
            target=section.target,
            submitted_at=time.time(),
        )

    def status(self, known: Submitted) -> Status:
        try:
            found = _get(known)
        except KubectlError as error:
            if error.reason != "NotFound":
                raise
            return Status(
                state="unknown",
                word="NotFound",
                detail="it is not in the cluster: cancelled, or ended and kept no longer than cluster.keep_s",
            )
        pods = pods_of(known.job_id, known.namespace, known.target, _owner(known, found))
        return decide(found, pods, "" if pods else _trouble(known))

    def logs(self, known: Submitted, follow: bool, show: Show) -> None:
        if not follow:
            show_log(known.job_id, known.namespace, known.target, show)
            return

        def ended() -> str | None:
            status = self.status(known)
            over = status.state in ("done", "failed", "cancelled", "unknown")
            return (status.detail or status.word) if over else None

        follow_log(known.job_id, known.namespace, known.target, ended, show)

    def cancel(self, known: Submitted) -> None:
        others = ["configmap"] if known.target == "TrainJob" else ["service", "configmap"]
        objects = [f"{kind}/{known.job_id}" for kind in [_TYPES[known.target], *others]]
        words = ["delete", *objects, "--ignore-not-found", "--wait=false", "--output=name"]
        if not kubectl(words, known.namespace).strip():
            raise RefusedError(f"{known.job_id} is not in the cluster any more; there is nothing to cancel")
        _await_end(known)


def _section(job: Job) -> KubernetesSection:
    assert isinstance(job.cluster, KubernetesSection)
    return job.cluster


def _heading(job: Job, section: KubernetesSection, folder: Path) -> str:
    by_hand = f"By hand: kubectl create -f {shlex.quote(str(folder / MANIFESTS))}"
    lines = ["Written by `shardrun submit`.", by_hand, *(f"Note: {note}" for note in notes(job, section))]
    return "".join(f"# {_in_a_line(line)}\n" for line in lines)


def _in_a_line(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _get(known: Submitted) -> Mapping[str, Any]:
    words = ["get", f"{_TYPES[known.target]}/{known.job_id}", "--output=json"]
    found: Mapping[str, Any] = json.loads(kubectl(words, known.namespace))
    return found


def _owner(known: Submitted, found: Mapping[str, Any]) -> str:
    """The uid that pods have as their owner's; a TrainJob's pods belong to a Job that its runtime makes."""
    return "" if known.target == "TrainJob" else str(found["metadata"].get("uid", ""))


def _trouble(known: Submitted) -> str:
    """Why there is no pod: the cluster's latest warning about the job, such as a quota that is used up."""
    words = ["get", "events", f"--field-selector=involvedObject.name={known.job_id},type=Warning", "--output=json"]
    try:
        events = json.loads(kubectl(words, known.namespace))["items"]
    except KubectlError:
        return ""  # who may not read events is told no reason
    if not events:
        return ""
    last = max(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return f"{last.get('reason', 'Warning')}: {last.get('message', '')}"


def _await_end(known: Submitted) -> None:
    """Wait a moment for the pods to end; say which are still at it."""
    deadline = time.monotonic() + _ENDING_S
    while pods := pods_of(known.job_id, known.namespace, known.target):
        if time.monotonic() > deadline:
            say(f"cancelled; still ending: {', '.join(pod.name for pod in pods[:4])} (the cluster waits a minute)")
            return
        time.sleep(_POLL_S)


KUBERNETES = _Kubernetes()
