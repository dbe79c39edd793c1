"""A job as a TrainJob of Kubeflow Trainer (trainer.kubeflow.org/v1alpha1, of Trainer 2.2 and newer).

The runtime that it names makes the pods, the Service and the variables PET_*; it must have, as Trainer's own
`torch-distributed` has, a policy `torch`, and one Job and container `node`.
"""

from launcher.cluster.kubernetes.manifests import (
    Manifest,
    config_map,
    environment,
    labels,
    metadata,
    pod_choices,
    resources,
    run_arguments,
    run_command,
)
from launcher.cluster.kubernetes.naming import cluster_name
from launcher.cluster.kubernetes.volumes import mounted
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job

API_VERSION = "trainer.kubeflow.org/v1alpha1"
# The Job and the container of Trainer's torch runtimes.
NODE = "node"


def train_job_manifests(job: Job, section: KubernetesSection, text: str) -> list[Manifest]:
    """The TrainJob and its ConfigMap. `text`: the frozen job file."""
    name = cluster_name(job, "TrainJob")
    spec: Manifest = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": section.runtime,
        },
        "trainer": _trainer(name, job, section),
        "runtimePatches": [_patch(name, job, section)],
    }
    if section.time_s is not None:
        spec["activeDeadlineSeconds"] = section.time_s
    train_job: Manifest = {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": metadata(name, section),
        "spec": spec,
    }
    return [train_job, config_map(name, section, text)]


def _trainer(name: str, job: Job, section: KubernetesSection) -> Manifest:
    ranks: object = job.options.parallel.nproc_per_node
    return {
        "image": section.image,
        "command": run_command(job),
        "args": run_arguments(job, "$(PET_NODE_RANK)", "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)", name),
        "env": environment(job),
        "numNodes": job.options.parallel.nnodes,
        # Only for PET_NPROC_PER_NODE, which nobody reads here: the launcher starts the ranks, as the job file says.
        "numProcPerNode": ranks if isinstance(ranks, int) else 1,
        "resourcesPerNode": resources(job, section),
    }


def _patch(name: str, job: Job, section: KubernetesSection) -> Manifest:
    """What a TrainJob has no field for: volumes and where pods may run, laid over the runtime's template."""
    places = mounted(name, section.shm, section.volumes or {})
    pod: Manifest = {
        **pod_choices(job, section),
        "volumes": places.volumes,
        "containers": [{"name": NODE, "volumeMounts": places.mounts}],
    }
    template: Manifest = {"template": {"metadata": {"labels": labels(name)}, "spec": pod}}
    return {
        "manager": "shardrun",
        "trainingRuntimeSpec": {
            "template": {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": template}}]}}
        },
    }
