"""The kinds of cluster there are."""

from launcher.cluster.kinds import Cluster
from launcher.cluster.kubernetes.cluster import KUBERNETES
from launcher.cluster.slurm.cluster import SLURM
from parallel.errors import RefusedError, one_of

_CLUSTERS: dict[str, Cluster] = {"slurm": SLURM, "kubernetes": KUBERNETES}
# What `submit` calls, as `--dry_run` tells it.
CALLED = {
    "slurm": ("sbatch --test-only {folder}/job.sbatch", "sbatch --parsable {folder}/job.sbatch"),
    "kubernetes": ("kubectl create -f {folder}/job.k8s.yaml",),
}


def cluster_of(kind: str) -> Cluster:
    """RefusedError where a record names a kind that this version does not have."""
    if kind not in _CLUSTERS:
        raise RefusedError(f"'{kind}' is not a kind of cluster; wanted {one_of(list(_CLUSTERS))}")
    return _CLUSTERS[kind]
