"""What a job for Kubernetes is refused for, in the words that a user reads."""

from typing import Any

import pytest

from launcher.cluster.kubernetes import syntax
from launcher.cluster.kubernetes.checks import check, notes
from launcher.cluster.kubernetes.naming import cluster_name
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job
from launcher.settings.job_text import job_text
from parallel.errors import RefusedError
from tests.unit.launcher.cluster.kubernetes_jobs import job, section, with_env


def refusal(known: Job) -> str:
    assert isinstance(known.cluster, KubernetesSection)
    with pytest.raises(RefusedError) as caught:
        check(known, known.cluster, job_text(known))
    return str(caught.value)


def noted(known: Job) -> list[str]:
    assert isinstance(known.cluster, KubernetesSection)
    return notes(known, known.cluster)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": "Shardrun:1"}, "cluster.image is 'Shardrun:1'; wanted an image: [HOST[:PORT]/]NAME[:TAG]"),
        ({"image": "a b"}, "cluster.image is 'a b'; wanted an image"),
        ({"namespace": "My_Team"}, "cluster.namespace is 'My_Team'; wanted at most 63 small letters, digits and '-'"),
        ({"memory": "8GB"}, "cluster.memory is '8GB'; wanted an amount as 64Gi"),
        ({"memory": "8GB"}, "did you mean 8G?"),
        ({"memory": "8gib"}, "did you mean 8Gi?"),
        ({"memory": "64"}, "did you mean 64Gi?"),
        ({"memory": "64m"}, "did you mean 64M?"),
        ({"shm": "0"}, "cluster.shm is '0'; wanted an amount"),
        ({"cpu": "8 cores"}, "cluster.cpu is '8 cores'; wanted cores as 8 or 0.5, or thousandths of a core as 500m"),
        ({"cpu": "0"}, "cluster.cpu is '0'"),
        ({"service_account": "Runner"}, "cluster.service_account is 'Runner'"),
        ({"image_pull_secret": "a_b"}, "cluster.image_pull_secret is 'a_b'"),
        ({"runtime": "Torch"}, "cluster.runtime is 'Torch'"),
        ({"node_selector": {"a b": "c"}}, "cluster.node_selector: 'a b'; wanted a label's key"),
        (
            {"node_selector": {"gpu": "H100 80GB"}},
            "cluster.node_selector: 'gpu' is 'H100 80GB'; wanted a label's value",
        ),
        (
            {"volumes": {"models": "pvc:a"}},
            "cluster.volumes: 'models' is not a path in the pod; wanted an absolute one",
        ),
        ({"volumes": {"/a/../b": "pvc:a"}}, "cluster.volumes: '/a/../b' is not a path in the pod"),
        ({"volumes": {"/": "pvc:a"}}, "cluster.volumes: '/' would hide the image"),
        ({"volumes": {"/dev/shm": "pvc:a"}}, "cluster.volumes: '/dev/shm' is in the way of /etc/shardrun or /dev/shm"),
        ({"volumes": {"/etc": "pvc:a"}}, "cluster.volumes: '/etc' is in the way of"),
        ({"volumes": {"/a": "pvc:x", "//a/": "pvc:y"}}, "cluster.volumes: '//a/' is the same path as '/a'"),
        ({"volumes": {"/a": "models"}}, "'/a' is 'models'; wanted pvc:CLAIM, hostPath:/FOLDER or configMap:NAME"),
        ({"volumes": {"/a": "pvc:My_Claim"}}, "'/a' is 'pvc:My_Claim'; wanted pvc:NAME, NAME of small letters"),
        ({"volumes": {"/a": "hostPath:data"}}, "'/a' is 'hostPath:data'; wanted hostPath:/FOLDER, an absolute path"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(job(section(**given)))


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = refusal(with_env(job(section(image="A", memory="8GB", volumes={"x": "y"}), name="___"), {"PET_NNODES": "2"}))
    assert len(text.splitlines()) == 6
    assert text.splitlines()[0] == "name is '___'; Kubernetes wants at least one letter or digit in it"
    assert text.splitlines()[-1] == "env: PET_NNODES is given by the cluster; leave it out"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("demo", "demo"), ("Llama_7B", "llama-7b"), ("70B", "job-70b"), ("a..b__c-", "a-b-c"), ("x.yaml", "x-yaml")],
)
def test_a_name_is_made_fit_for_the_cluster(name: str, expected: str) -> None:
    assert cluster_name(job(name=name), "Job") == expected
    assert noted(job(section(volumes={"/models": "pvc:m"}), name=name)) == (
        [] if name == expected else [f"in the cluster the job is called {expected}"]
    )


@pytest.mark.parametrize(("target", "nnodes", "longest"), [("Job", 1, 61), ("Job", 11, 60), ("TrainJob", 2, 54)])
def test_the_host_names_of_pods_must_fit_too(target: str, nnodes: int, longest: int) -> None:
    assert cluster_name(job(name="a" * longest, nnodes=nnodes), target) == "a" * longest
    with pytest.raises(RefusedError, match=rf"wanted at most {longest}: its pods' host names, as a+.*, may have 63"):
        cluster_name(job(name="a" * (longest + 1), nnodes=nnodes), target)


def test_fewer_gpus_than_ranks_are_refused_unless_ranks_share_them() -> None:
    few = section(gpus_per_node=2)
    text = refusal(job(few, device="cuda", nproc_per_node=4))
    assert text.startswith("cluster.gpus_per_node is 2; wanted 4, one for each rank of a pod")
    check(job(few, device="cuda", backend="gloo", nproc_per_node=4), few, "")


def test_a_job_file_that_no_config_map_holds_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"the job file has 1000001 bytes; .* give prompts as @FILE"):
        check(job(), section(), "x" * 1_000_001)


def test_what_no_volume_holds_is_noted() -> None:
    inside = section(volumes={"/models/": "pvc:models"})
    assert noted(job(inside)) == []
    assert noted(job(inside, log_dir="/logs")) == [
        "parallel.log_dir is /logs, which is on none of cluster.volumes: what is written there goes with the pod"
    ]
    assert noted(job()) == [
        "model.ckpt_dir is /models/llama, which is on none of cluster.volumes: it must be in the image"
    ]


@pytest.mark.parametrize(
    "image",
    [
        "a",
        "a/b",
        "a.b:5000/c",
        "a_b/c--d:V1.0",
        f"a@sha256:{'a' * 64}",
        f"host.io/a/b:t@sha256:{'0' * 64}",
        "localhost/a",
    ],
)
def test_images_in_every_form_are_taken(image: str) -> None:
    assert syntax.image(image) is None


@pytest.mark.parametrize(
    "image", ["", "/a", "a/", "a:", "a@", "a//b", "a:b c", "a\n", "A", "a" * 501, "http://a/b", "a:tag/"]
)
def test_what_is_no_image_is_not_taken(image: str) -> None:
    assert syntax.image(image) is not None


@pytest.mark.parametrize(
    ("text", "size"), [("1Mi", 2**20), ("8G", 8e9), ("1.5Gi", 1.5 * 2**30), ("3", 3), ("8GB", None)]
)
def test_amounts_are_read(text: str, size: float | None) -> None:
    assert syntax.memory_bytes(text) == size
