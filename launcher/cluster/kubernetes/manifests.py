"""A job as what Kubernetes takes: an Indexed Job, a headless Service for its pods' names, and the job file.

Plain dicts, made of the job alone: nothing here asks a cluster.
"""

from launcher.cluster.kubernetes.checks import gpus_per_pod
from launcher.cluster.kubernetes.naming import cluster_name, pod_name
from launcher.cluster.kubernetes.volumes import JOB_FOLDER, Mounted, mounted
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job
from launcher.settings.options import ParallelSection
from launcher.settings.schema import settings_of

Manifest = dict[str, object]

JOB_FILE = "job.yaml"
CONTAINER = "shardrun"
PORT = 29500
_GPU = "nvidia.com/gpu"
# The first pod waits for the last: until a node has room for it and has fetched the image.
_JOIN_S = 600
_GRACE_S = 60


def job_manifests(job: Job, section: KubernetesSection, text: str) -> list[Manifest]:
    """The Job, its Service and its ConfigMap. `text`: the frozen job file."""
    name = cluster_name(job, "Job")
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(name, section),
            "spec": _job_spec(name, job, section),
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(name, section),
            "spec": {
                # Headless: it gives pods names and nothing else, from before they are ready, since they are ready
                # only when they have met.
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": labels(name),
                "ports": [{"name": "rendezvous", "port": PORT}],
            },
        },
        config_map(name, section, text),
    ]


def _job_spec(name: str, job: Job, section: KubernetesSection) -> Manifest:
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": job.options.parallel.nnodes,
        "parallelism": job.options.parallel.nnodes,
        # A pod that is started again alone would wait for ranks that have gone.
        "backoffLimit": 0,
        # Beside backoffLimit 0 it changes nothing but what the Job says of its end: which pod, and its exit code.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                    # Schemas of before 1.29, and kubectl with them, want it to be there.
                    "onPodConditions": [],
                }
            ]
        },
        "ttlSecondsAfterFinished": section.keep_s,
    }
    if section.time_s is not None:
        spec["activeDeadlineSeconds"] = section.time_s
    return {**spec, "template": {"metadata": {"labels": labels(name)}, "spec": _pod_spec(name, job, section)}}


def _pod_spec(name: str, job: Job, section: KubernetesSection) -> Manifest:
    places = mounted(name, section.shm, section.volumes or {})
    return {
        "subdomain": name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "enableServiceLinks": False,
        # Ranks have nothing to ask of the cluster.
        **({} if section.service_account else {"automountServiceAccountToken": False}),
        **pod_choices(job, section),
        "containers": [_container(name, job, section, places)],
        "volumes": places.volumes,
    }


def _container(name: str, job: Job, section: KubernetesSection, places: Mounted) -> Manifest:
    endpoint = f"{pod_name(name, 0, 'Job')}.{name}:{PORT}"
    container: Manifest = {
        "name": CONTAINER,
        "image": section.image,
        "command": run_command(job),
        "args": run_arguments(job, "$(JOB_COMPLETION_INDEX)", endpoint, name),
    }
    if job.workdir is not None:
        container["workingDir"] = job.workdir
    return {
        **container,
        "env": environment(job),
        "ports": [{"name": "rendezvous", "containerPort": PORT}],
        "resources": resources(job, section),
        "volumeMounts": places.mounts,
        # Then a pod's status tells how it ended, to whoever may not read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def run_command(job: Job) -> list[str]:
    several = job.options.parallel.nnodes > 1
    return ["python", "-P", "-m", "launcher.cluster.kubernetes.pod" if several else "launcher"]


def run_arguments(job: Job, node_rank: str, endpoint: str, name: str) -> list[str]:
    """What each pod runs. `node_rank` and `endpoint` may be variables of the container, as $(NAME)."""
    parallel = job.options.parallel
    arguments = ["run", f"{JOB_FOLDER}/{JOB_FILE}", f"parallel.nnodes={parallel.nnodes}"]
    if parallel.nnodes == 1:
        return arguments
    if parallel.rdzv_backend == "static":
        arguments.append(f"parallel.node_rank={node_rank}")
    default_s = settings_of(ParallelSection)["join_timeout_s"].default
    join_s = _JOIN_S if parallel.join_timeout_s == default_s else parallel.join_timeout_s
    return [
        *arguments,
        f"parallel.rdzv_endpoint={endpoint}",
        f"parallel.rdzv_id={name}",
        f"parallel.join_timeout_s={join_s:g}",
    ]


def metadata(name: str, section: KubernetesSection) -> Manifest:
    namespace = {} if section.namespace is None else {"namespace": section.namespace}
    return {"name": name, **namespace, "labels": labels(name)}


def labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "shardrun", "app.kubernetes.io/instance": name}


def config_map(name: str, section: KubernetesSection, text: str) -> Manifest:
    """The job file, the same for all pods."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(name, section),
        "immutable": True,
        "data": {JOB_FILE: text},
    }


def resources(job: Job, section: KubernetesSection) -> Manifest:
    """Requests equal limits: a pod that is over neither is the last to be evicted."""
    wanted: dict[str, str] = {}
    if section.cpu is not None:
        wanted["cpu"] = section.cpu
    if section.memory is not None:
        wanted["memory"] = section.memory
    if gpus := gpus_per_pod(job, section):
        wanted[_GPU] = str(gpus)
    return {"requests": dict(wanted), "limits": dict(wanted)} if wanted else {}


def environment(job: Job) -> list[Manifest]:
    # Kubernetes puts values in the place of $(NAME); $$( stands for $( itself.
    return [{"name": name, "value": value.replace("$(", "$$(")} for name, value in job.env.items()]


def pod_choices(job: Job, section: KubernetesSection) -> Manifest:
    """Where pods may run, as whom, and with which secret their image is fetched."""
    found: Manifest = {}
    if section.service_account is not None:
        found["serviceAccountName"] = section.service_account
    if section.image_pull_secret is not None:
        found["imagePullSecrets"] = [{"name": section.image_pull_secret}]
    if section.node_selector:
        found["nodeSelector"] = dict(section.node_selector)
    if gpus_per_pod(job, section):
        # Nodes with GPUs are often kept for those who ask for them.
        found["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return found
