"""The `volumes` of a job: `pvc:CLAIM`, `hostPath:/FOLDER` and `configMap:NAME`, by their paths in the pod."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.cluster.kubernetes.syntax import dns_subdomain, shown

# Where the frozen job file stands in a pod.
JOB_FOLDER = "/etc/shardrun"
SHM = "/dev/shm"
_WANTED = "pvc:CLAIM, hostPath:/FOLDER or configMap:NAME"


@dataclass(frozen=True, slots=True)
class Mounted:
    """Volumes of a pod, and where a container has them."""

    volumes: list[dict[str, object]]
    mounts: list[dict[str, object]]


def mounted(config_map: str, shm: str, volumes: Mapping[str, str]) -> Mounted:
    """The job file, the shared memory and what the user wants, each source once."""
    known: list[dict[str, object]] = [
        {"name": "job", "configMap": {"name": config_map}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
    ]
    mounts: list[dict[str, object]] = [
        {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True},
        {"name": "shm", "mountPath": SHM},
    ]
    names: dict[str, str] = {}
    for path, source in volumes.items():
        if source not in names:
            # Two volumes of one claim in a pod wait for each other in some clusters.
            names[source] = f"data-{len(names)}"
            known.append({"name": names[source], **_source(source)})
        mounts.append({"name": names[source], "mountPath": normal_path(path)})
    return Mounted(known, mounts)


def _source(text: str) -> dict[str, object]:
    kind, _, rest = text.partition(":")
    if kind == "pvc":
        return {"persistentVolumeClaim": {"claimName": rest}}
    if kind == "hostPath":
        return {"hostPath": {"path": rest, "type": "Directory"}}
    return {"configMap": {"name": rest}}


def volume_problems(volumes: Mapping[str, str]) -> list[str]:
    """What is wrong with them, a sentence each."""
    problems = []
    seen: dict[str, str] = {}
    for path, source in volumes.items():
        key = f"cluster.volumes: {shown(path)}"
        if wrong := _wrong_path(path):
            problems.append(f"{key} {wrong}")
        elif (normal := normal_path(path)) in seen:
            problems.append(f"{key} is the same path as {shown(seen[normal])}; mount one thing there")
        else:
            seen[normal] = path
        if wanted := _wrong_source(source):
            problems.append(f"{key} is {shown(source)}; wanted {wanted}")
    return problems


def _wrong_path(path: str) -> str | None:
    normal = normal_path(path)
    if not _is_folder(path):
        return "is not a path in the pod; wanted an absolute one without '..' and ':', as /models"
    if normal == "/":
        return "would hide the image; wanted a folder, as /models"
    if any(is_below(normal, taken) or is_below(taken, normal) for taken in (JOB_FOLDER, SHM)):
        return f"is in the way of {JOB_FOLDER} or {SHM}, which are mounted already; wanted another folder"
    return None


def _wrong_source(text: str) -> str | None:
    kind, _, rest = text.partition(":")
    if kind == "hostPath":
        return None if _is_folder(rest) else "hostPath:/FOLDER, an absolute path of the nodes without '..' and ':'"
    if kind in ("pvc", "configMap"):
        wanted = dns_subdomain(rest)
        return wanted and f"{kind}:NAME, NAME of {wanted}"
    return _WANTED


def _is_folder(path: str) -> bool:
    return path.startswith("/") and path.isprintable() and ":" not in path and ".." not in path.split("/")


def normal_path(path: str) -> str:
    # normpath keeps two slashes at the start.
    return "/" + posixpath.normpath(path).lstrip("/")


def is_below(path: str, folder: str) -> bool:
    """True for the folder itself too."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
