"""Making a job's objects in the cluster: all of them or none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.cluster.kubernetes.kubectl import KubectlError, kubectl
from launcher.cluster.kubernetes.train_job import API_VERSION
from launcher.console import say
from parallel.errors import RefusedError

_LINE = 'jsonpath={.kind} {.metadata.name} {.metadata.namespace} {.metadata.uid}{"\\n"}'
_VERSIONS = {"Job": "batch/v1", "TrainJob": API_VERSION}


class Made(NamedTuple):
    """An object that the server made."""

    kind: str
    name: str
    namespace: str
    uid: str


def create(name: str, file: Path, namespace: str, target: str) -> Made:
    """Make what `file` holds, once the server said that it would; the Job or TrainJob called `name`."""
    words = ["create", f"--filename={file}", f"--output={_LINE}"]
    try:
        kubectl([*words, "--dry-run=server"], namespace)
    except KubectlError as error:
        raise _refused(error, name, file, target) from None
    try:
        made = read_made(kubectl(words, namespace))
    except KubectlError as error:
        _remove(read_made(error.printed))
        raise _refused(error, name, file, target) from None
    head = next((item for item in made if item.kind == target), None)
    if head is None:
        raise RefusedError(f"kubectl did not say that it made {target} {name}; look with `kubectl get -f {file}`")
    _adopt(head, [item for item in made if item is not head])
    return head


def _refused(error: KubectlError, name: str, file: Path, target: str) -> RefusedError:
    if error.reason == "AlreadyExists":
        return RefusedError(
            f"the cluster has a {name} already ({error}); give this job another name, as `shardrun submit JOB.yaml "
            f"name=NAME`, or remove that one: `kubectl delete {target.lower()} {name}`"
        )
    if "runtimePatches" in str(error):
        return RefusedError(f"{error}; wanted Kubeflow Trainer 2.2 or newer in the cluster, or cluster.target Job")
    if "no matches for kind" in str(error):
        return RefusedError(f"{error}; wanted Kubeflow Trainer in the cluster, or cluster.target Job")
    return RefusedError(f"{error} (the manifests are in {file})")


def read_made(lines: str) -> list[Made]:
    """Of lines 'KIND NAME NAMESPACE UID'."""
    return [Made(*words) for line in lines.splitlines() if len(words := line.split(" ")) == len(Made._fields)]


def _remove(made: Sequence[Made]) -> None:
    """What a creation that failed half-way has left."""
    for item in made:
        try:
            kubectl(
                ["delete", f"{item.kind.lower()}/{item.name}", "--ignore-not-found", "--wait=false"], item.namespace
            )
        except RefusedError as error:
            say(f"note: {item.kind.lower()} {item.name} was made and is left: {error}")


def _adopt(head: Made, others: Sequence[Made]) -> None:
    """Let the others go when the job goes: after cluster.keep_s the cluster removes the job by itself."""
    owner = {"apiVersion": _VERSIONS[head.kind], "kind": head.kind, "name": head.name, "uid": head.uid}
    patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
    for item in others:
        try:
            kubectl(["patch", f"{item.kind.lower()}/{item.name}", "--type=merge", f"--patch={patch}"], item.namespace)
        except RefusedError as error:
            say(f"note: {item.kind.lower()} {item.name} stays when the job is removed: {error}")
