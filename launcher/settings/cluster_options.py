"""The `cluster` section of a job file: where `shardrun submit` sends it. Which keys there are depends on `kind`."""

from dataclasses import dataclass
from typing import Literal

from launcher.settings.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSection:
    """sbatch's own names, with `_` for `-`. Nodes and ranks a node are parallel.nnodes and parallel.nproc_per_node."""

    kind: Literal["slurm"] = setting("slurm")
    partition: str | None = setting("partition (default: the cluster's)", default=None)
    account: str | None = setting("account to charge", default=None)
    qos: str | None = setting("quality of service", default=None)
    time: str | None = setting("time limit: minutes, H:MM:SS or D-HH:MM:SS (quote it)", default=None)
    gpus_per_node: int | None = setting(
        "GPUs of each node (default: as many as ranks, with parallel.device cuda)", default=None, low=0, high=1024
    )
    cpus_per_task: int | None = setting(
        "CPU cores for the ranks of a node (default: one each, or all of the node with exclusive)",
        default=None,
        low=1,
        high=4096,
    )
    mem: str | None = setting("host memory of each node, as 64G (default: the cluster's)", default=None)
    constraint: str | None = setting("features that nodes must have", default=None)
    exclusive: bool = setting("no other job on the nodes", default=False)
    nodelist: str | None = setting("nodes that must be among those used", default=None)
    exclude: str | None = setting("nodes not to be used", default=None)
    output: str | None = setting(
        "file for the job's output (default: slurm-JOBID.log in the job's folder)", default=None
    )
    requeue: bool = setting("let Slurm start the job again, as after a node's failure", default=False)
    port: int | None = setting(
        "port where the nodes meet (default: from the job's id)", default=None, low=1024, high=65535
    )
    setup: list[str] | None = setting("shell lines to run on each node first, as 'module load cuda'", default=None)
    extra: dict[str, str] | None = setting("other options of sbatch, by their names without --", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSection:
    """Kubernetes' own words. Pods and ranks a pod are parallel.nnodes and parallel.nproc_per_node."""

    kind: Literal["kubernetes"] = setting("kubernetes")
    target: Literal["Job", "TrainJob"] = setting(
        "Job: an Indexed Job and a headless Service; TrainJob: Kubeflow Trainer's", default="Job"
    )
    image: str = setting("container image that has shardrun")
    namespace: str | None = setting("namespace (default: kubectl's)", default=None)
    gpus_per_node: int | None = setting(
        "GPUs of each pod (default: as many as ranks, with parallel.device cuda)", default=None, low=0, high=1024
    )
    cpu: str | None = setting("CPU of each pod, as '8' (quote it) or 500m", default=None)
    memory: str | None = setting("memory of each pod, as 64Gi", default=None)
    shm: str = setting("shared memory of each pod, /dev/shm", default="8Gi")
    volumes: dict[str, str] | None = setting(
        "what to mount, by its path in the pod: pvc:CLAIM, hostPath:/FOLDER or configMap:NAME", default=None
    )
    service_account: str | None = setting("service account of the pods", default=None)
    image_pull_secret: str | None = setting("secret to pull the image with", default=None)
    node_selector: dict[str, str] | None = setting("labels that nodes must have", default=None)
    runtime: str = setting("TrainJob's runtimeRef, a ClusterTrainingRuntime", default="torch-distributed")
    time_s: int | None = setting("seconds after which the job is ended", default=None, low=1)
    keep_s: int = setting("seconds that a job that has ended is kept", default=86400, low=0)


ClusterSection = SlurmSection | KubernetesSection
CLUSTER_SECTIONS: dict[str, type] = {"slurm": SlurmSection, "kubernetes": KubernetesSection}
