"""The name of a job in the cluster, made of the job's own."""

import re

from launcher.settings.job import Job
from parallel.errors import RefusedError

_LONGEST = 63


def cluster_name(job: Job, target: str) -> str:
    """The name of the Job, Service and ConfigMap: `Llama_7B` becomes `llama-7b`.

    It is also the first part of the pods' host names (NAME-INDEX), which the network lets have 63 letters. RefusedError
    where nothing is left of it, or where it is too long.
    """
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")
    if not name:
        raise RefusedError(f"name is '{job.name}'; Kubernetes wants at least one letter or digit in it")
    if not name[0].isalpha():
        # A Service's name begins with a letter.
        name = f"job-{name}"
    last = pod_name(name, job.options.parallel.nnodes - 1, target)
    if len(last) > _LONGEST:
        raise RefusedError(
            f"name is '{job.name}' ({len(name)} letters in the cluster); wanted at most "
            f"{len(name) + _LONGEST - len(last)}: its pods' host names, as {last}, may have {_LONGEST}"
        )
    return name


def pod_name(name: str, index: int, target: str) -> str:
    """The host name of a pod. Of a TrainJob the pods are those of the Job `node-0` that its runtime makes."""
    return f"{name}-node-0-{index}" if target == "TrainJob" else f"{name}-{index}"
