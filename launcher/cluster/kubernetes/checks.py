"""What is wrong with a job for Kubernetes, found before anything is written.

The server finds some of it, one thing at a time; a schema misses all of it; and a pod that cannot start says it late.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields

from launcher.cluster.kubernetes import syntax
from launcher.cluster.kubernetes.naming import cluster_name
from launcher.cluster.kubernetes.syntax import shown
from launcher.cluster.kubernetes.volumes import is_below, normal_path, volume_problems
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job
from launcher.settings.schema import FileName
from parallel.errors import RefusedError

# Of each: what is wanted where it does not fit.
_TEXTS: dict[str, Callable[[str], str | None]] = {
    "image": syntax.image,
    "namespace": syntax.dns_label,
    "cpu": syntax.cpu,
    "memory": syntax.memory,
    "shm": syntax.memory,
    "service_account": syntax.dns_subdomain,
    "image_pull_secret": syntax.dns_subdomain,
    "runtime": syntax.dns_subdomain,
}
# Kubernetes gives them their values.
_GIVEN = frozenset(
    {"JOB_COMPLETION_INDEX", "PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
)
_WRITTEN = ("parallel.log_dir", "generation.output")
_MAX_JOB_BYTES = 1_000_000


def check(job: Job, section: KubernetesSection, text: str) -> None:
    """RefusedError lists all that is wrong, a line each. `text`: the frozen job file."""
    problems = [
        *_name_problems(job, section),
        *_text_problems(section),
        *volume_problems(section.volumes or {}),
        *_label_problems(section.node_selector or {}),
        *_env_problems(job.env),
        *_rank_problems(job, section),
        *_size_problems(text),
    ]
    if problems:
        raise RefusedError("\n".join(problems))


def gpus_per_pod(job: Job, section: KubernetesSection) -> int:
    """GPUs of each pod: as said, else one a rank with `device: cuda`."""
    parallel = job.options.parallel
    if section.gpus_per_node is not None or parallel.device != "cuda":
        return section.gpus_per_node or 0
    return _ranks(job) or 0


def notes(job: Job, section: KubernetesSection) -> list[str]:
    """What is not wrong, but worth knowing before the job waits for its turn."""
    name = cluster_name(job, section.target)
    said = [] if name == job.name else [f"in the cluster the job is called {name}"]
    mounted = [normal_path(path) for path in section.volumes or {}]
    for key, path in _paths(job).items():
        if not any(is_below(path, folder) for folder in mounted):
            then = "what is written there goes with the pod" if key in _WRITTEN else "it must be in the image"
            said.append(f"{key} is {path}, which is on none of cluster.volumes: {then}")
    if section.target == "TrainJob":
        said.append("a TrainJob's runtime says how long it is kept and whether failed pods are started again")
    return said


def _name_problems(job: Job, section: KubernetesSection) -> list[str]:
    try:
        cluster_name(job, section.target)
    except RefusedError as error:
        return [str(error)]
    return []


def _text_problems(section: KubernetesSection) -> list[str]:
    found = []
    for field in fields(section):
        value = getattr(section, field.name)
        wanted = _TEXTS[field.name](value) if field.name in _TEXTS and value is not None else None
        if wanted is not None:
            found.append(f"cluster.{field.name} is {shown(value)}; wanted {wanted}")
    return found


def _label_problems(labels: Mapping[str, str]) -> list[str]:
    keys = [
        f"cluster.node_selector: {shown(key)}; wanted {wanted}" for key in labels if (wanted := syntax.label_key(key))
    ]
    values = [
        f"cluster.node_selector: {shown(key)} is {shown(value)}; wanted {wanted}"
        for key, value in labels.items()
        if (wanted := syntax.label_value(value))
    ]
    return keys + values


def _env_problems(env: Mapping[str, str]) -> list[str]:
    found = [f"env: {shown(name)}; wanted {wanted}" for name in env if (wanted := syntax.env_name(name))]
    return found + [f"env: {name} is given by the cluster; leave it out" for name in env if name in _GIVEN]


def _rank_problems(job: Job, section: KubernetesSection) -> list[str]:
    parallel, ranks, given = job.options.parallel, _ranks(job), section.gpus_per_node
    found = []
    if parallel.device == "cuda" and ranks is None and given is None:
        found.append(f"cluster.gpus_per_node is missing; parallel.nproc_per_node is {parallel.nproc_per_node}")
    if parallel.device == "cuda" and parallel.backend != "gloo" and given is not None and given < (ranks or 1):
        found.append(
            f"cluster.gpus_per_node is {given}; wanted {ranks or 1}, one for each rank of a pod "
            "(parallel.nproc_per_node), or parallel.backend gloo, with which ranks share GPUs"
        )
    return found


def _ranks(job: Job) -> int | None:
    """Ranks of a pod; None where the pod's own devices decide."""
    ranks: object = job.options.parallel.nproc_per_node
    return 1 if ranks is None else ranks if isinstance(ranks, int) else None


def _size_problems(text: str) -> list[str]:
    size = len(text.encode())
    if size <= _MAX_JOB_BYTES:
        return []
    return [
        f"the job file has {size} bytes; wanted at most {_MAX_JOB_BYTES}, which a ConfigMap holds: give prompts as "
        "@FILE, and the file on a volume"
    ]


def _paths(job: Job) -> dict[str, str]:
    """The files and folders that the job names, by their keys."""
    options = job.options
    found = {
        "workdir": job.workdir,
        "model.ckpt_dir": options.model.ckpt_dir,
        "model.tokenizer_path": options.model.tokenizer_path,
        "parallel.log_dir": options.parallel.log_dir,
        "generation.output": options.generation.output,
    }
    for key in ("prompts", "dialogs", "text"):
        value = getattr(options.generation, key, None)
        if isinstance(value, list) and value and isinstance(value[0], FileName):
            found[f"generation.{key}"] = value[0][1:]
        elif isinstance(value, str) and value.startswith("@"):
            found[f"generation.{key}"] = value[1:]
    return {key: path for key, path in found.items() if path is not None}
