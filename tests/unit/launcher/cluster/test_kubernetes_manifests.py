"""Manifests for Kubernetes: by the schemas of each version that the package `kubernetes-validate` has, and by ours."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cluster.kubernetes.checks import check
from launcher.cluster.kubernetes.cluster import KUBERNETES, MANIFESTS
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job, read_job
from launcher.settings.job_text import job_text
from parallel.errors import RefusedError
from tests.unit.launcher.cluster.kubernetes_jobs import (
    IMAGE,
    Manifest,
    assert_sound,
    container_of,
    job,
    manifests_of,
    pod_of,
    section,
    with_env,
)

ROOT = Path(__file__).resolve().parents[4]
NEWEST = "1.37.0"
VERSIONS = [f"1.{minor}.0" for minor in range(25, 38)]
FULL = {
    "namespace": "llm",
    "cpu": "8",
    "memory": "64Gi",
    "volumes": {"/models": "pvc:models", "/scratch": "hostPath:/mnt/nvme", "/etc/prompts": "configMap:prompts"},
    "service_account": "runner",
    "image_pull_secret": "registry",
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100"},
    "time_s": 3600,
}
# Beside what Kubernetes itself has, a TrainJob has these fields, by Trainer 2.2's Go types.
TRAIN_JOB_FIELDS = {"runtimeRef", "trainer", "runtimePatches", "activeDeadlineSeconds"}
TRAINER_FIELDS = {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}
PATCHED_FIELDS = {"volumes", "containers", "serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations"}


def assert_valid(manifests: list[Manifest], version: str = NEWEST) -> None:
    """By the strict schemas, in which no unknown field passes; the parts of a TrainJob as parts of a Job."""
    known = schemas()
    for manifest in manifests:
        if manifest["kind"] == "TrainJob":
            manifest = _as_job(manifests)
        try:
            known.validate(manifest, version, strict=True)
        except known.ValidationError as error:
            pytest.fail(f"{manifest['kind']} in {version}: {list(error.path)}: {error.message}")


@functools.cache
def schemas() -> Any:
    """The package with all the versions' schemas."""
    known = pytest.importorskip("kubernetes_validate", reason="the test extra is not installed")
    # It reads megabytes anew for each object.
    known.utils.schema_contents = functools.cache(known.utils.schema_contents)
    return known


def _as_job(manifests: list[Manifest]) -> Manifest:
    spec = manifests[0]["spec"]
    assert set(spec) <= TRAIN_JOB_FIELDS
    assert set(spec["trainer"]) <= TRAINER_FIELDS
    pod = {**pod_of(manifests), "restartPolicy": "Never"}
    assert set(pod) <= {*PATCHED_FIELDS, "restartPolicy"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": manifests[0]["metadata"],
        "spec": {"template": {"spec": pod}},
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", ["Job", "TrainJob"])
@pytest.mark.parametrize("nnodes", [1, 2])
def test_manifests_are_valid_in_every_version_of_kubernetes(version: str, target: str, nnodes: int) -> None:
    made = manifests_of(job(section(**FULL, target=target), nnodes=nnodes, nproc_per_node=8, device="cuda"))
    assert_valid(made, version)
    assert_sound(made)
    least = manifests_of(job(section(target=target), nnodes=nnodes))
    assert_valid(least, version)
    assert_sound(least)


def test_a_field_that_kubernetes_does_not_know_is_found_by_the_schemas() -> None:
    made = manifests_of(job())
    made[0]["spec"]["template"]["spec"]["containers"][0]["shm"] = "8Gi"
    with pytest.raises(pytest.fail.Exception, match="'shm' was unexpected"):
        assert_valid(made)


NAME = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
OBJECT = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]{1,9})?", fullmatch=True)
AMOUNT = st.from_regex(r"[1-9][0-9]{0,3}(Mi|Gi|M|G)", fullmatch=True)
SOURCE = st.builds(lambda kind, name: f"{kind}:{name}", st.sampled_from(["pvc", "configMap"]), OBJECT)
FOLDER = st.from_regex(r"/[A-Za-z0-9_. -]{1,20}(/[A-Za-z0-9_-]{1,9})?/?", fullmatch=True)
WORD = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,40}[A-Za-z0-9])?", fullmatch=True)
GOOD = {
    "image": st.sampled_from(
        [IMAGE, "shardrun", "localhost:5000/a/b__c:v1.2", f"r.example.com/a/b@sha256:{'0f' * 32}"]
    ),
    "target": st.sampled_from(["Job", "TrainJob"]),
    "namespace": st.none() | st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    "gpus_per_node": st.none() | st.integers(0, 16),
    "cpu": st.none() | st.from_regex(r"[1-9][0-9]{0,2}(m|\.5)?", fullmatch=True),
    "memory": st.none() | AMOUNT,
    "shm": AMOUNT,
    "volumes": st.none()
    | st.dictionaries(FOLDER, SOURCE | st.builds(lambda path: f"hostPath:{path}", FOLDER), max_size=4),
    "service_account": st.none() | OBJECT,
    "image_pull_secret": st.none() | OBJECT,
    "node_selector": st.none()
    | st.dictionaries(st.builds("example.com/{}".format, WORD) | WORD, WORD | st.just(""), max_size=3),
    "runtime": OBJECT,
    "time_s": st.none() | st.integers(1, 10**6),
    "keep_s": st.integers(0, 10**6),
}
# What anybody might type, and what somebody with bad intentions would.
NASTY = st.text(max_size=20) | st.sampled_from(
    [
        "$(rm -rf /)",
        "a\nkind: Secret",
        "'; rm",
        "8GB",
        "64m",
        "../..",
        "/",
        "pvc:",
        "pvc:A b",
        "-x",
        "x" * 300,
        "no",
        "1e3",
    ]
)
ANY = {
    field.name: GOOD[field.name]
    if field.name in ("target", "gpus_per_node", "time_s", "keep_s")
    else GOOD[field.name] | (st.dictionaries(NASTY, NASTY, max_size=2) if "dict" in str(field.type) else NASTY)
    for field in dataclasses.fields(KubernetesSection)
    if field.name in GOOD
}


def jobs(fields: dict[str, st.SearchStrategy[Any]], env: st.SearchStrategy[str]) -> st.SearchStrategy[Job]:
    known = st.builds(
        job,
        st.builds(section, **fields),
        name=NAME,
        nnodes=st.integers(1, 12),
        nproc_per_node=st.none() | st.integers(1, 16),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        backend=st.sampled_from(["auto", "gloo"]),
    )
    return st.builds(with_env, known, st.dictionaries(env, st.text(max_size=20), max_size=3))


def assert_refused_or_right(known: Job) -> None:
    """What is refused is refused with a sentence on each thing; what is taken holds."""
    assert isinstance(known.cluster, KubernetesSection)
    refusal = None
    try:
        check(known, known.cluster, job_text(known))
    except RefusedError as error:
        refusal = str(error)
    if refusal is not None:
        assert all(" " in line for line in refusal.split("\n"))
        return
    made = manifests_of(known)
    assert_sound(made)
    assert_valid(made)
    # PyYAML reads YAML 1.1, in which more words than in kubectl's are no texts.
    text = KUBERNETES.files(known, Path("/somewhere"))[MANIFESTS]
    assert list(yaml.safe_load_all(text)) == made


@settings(max_examples=60, deadline=None)
@given(jobs(GOOD, st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True)))
def test_any_good_section_gives_manifests_that_hold(known: Job) -> None:
    assert_refused_or_right(known)


@settings(max_examples=60, deadline=None)
@given(jobs(ANY, NASTY))
def test_whatever_is_not_refused_gives_manifests_that_hold(known: Job) -> None:
    assert_refused_or_right(known)


@pytest.mark.drill
@settings(max_examples=10_000, deadline=None)
@given(jobs(ANY, NASTY) | jobs(GOOD, NASTY))
def test_ten_thousand_sections_are_refused_or_give_manifests_that_hold(known: Job) -> None:
    assert_refused_or_right(known)


def test_the_example_is_valid_in_every_version(tmp_path: Path) -> None:
    known = read_job(ROOT / "configs" / "kubernetes.yaml")
    documents = list(yaml.safe_load_all(KUBERNETES.files(known, tmp_path)[MANIFESTS]))
    assert [document["kind"] for document in documents] == ["Job", "Service", "ConfigMap"]
    assert_sound(documents)
    for version in VERSIONS:
        assert_valid(documents, version)


def test_the_pods_of_two_nodes_meet_at_the_first() -> None:
    container = container_of(manifests_of(job(name="Llama_7B", nnodes=2)))
    assert container["command"] == ["python", "-P", "-m", "launcher.cluster.kubernetes.pod"]
    assert container["args"] == [
        "run",
        "/etc/shardrun/job.yaml",
        "parallel.nnodes=2",
        "parallel.node_rank=$(JOB_COMPLETION_INDEX)",
        "parallel.rdzv_endpoint=llama-7b-0.llama-7b:29500",
        "parallel.rdzv_id=llama-7b",
        "parallel.join_timeout_s=600",
    ]


def test_one_pod_meets_nobody() -> None:
    container = container_of(manifests_of(job()))
    assert container["command"] == ["python", "-P", "-m", "launcher"]
    assert container["args"] == ["run", "/etc/shardrun/job.yaml", "parallel.nnodes=1"]


def test_the_pods_of_a_train_job_meet_where_its_runtime_says() -> None:
    made = manifests_of(job(section(target="TrainJob"), nnodes=2, nproc_per_node=4))
    assert container_of(made)["args"][3:5] == [
        "parallel.node_rank=$(PET_NODE_RANK)",
        "parallel.rdzv_endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)",
    ]
    assert (made[0]["spec"]["trainer"]["numNodes"], made[0]["spec"]["trainer"]["numProcPerNode"]) == (2, 4)


def test_a_job_says_how_long_its_nodes_wait_for_each_other() -> None:
    assert container_of(manifests_of(job(nnodes=2, join_timeout_s=1800.0)))["args"][-1].endswith("=1800")


def test_the_job_file_goes_along_and_gives_the_same_job(tmp_path: Path) -> None:
    known = with_env(job(name="x.y", nnodes=2, nproc_per_node=2), {"NCCL_DEBUG": "INFO"})
    data = manifests_of(known)[-1]["data"]
    (tmp_path / "job.yaml").write_text(data["job.yaml"], encoding="utf-8")
    read = read_job(tmp_path / "job.yaml")
    assert read == dataclasses.replace(known, cluster=None)


@pytest.mark.parametrize(
    ("device", "ranks", "given", "expected"),
    [
        ("cuda", 8, None, "8"),
        ("cuda", None, None, "1"),
        ("cpu", 8, None, None),
        ("auto", 8, None, None),
        ("auto", 2, 4, "4"),
    ],
)
def test_gpus_are_asked_for(device: str, ranks: int | None, given: int | None, expected: str | None) -> None:
    made = manifests_of(job(section(gpus_per_node=given), device=device, nproc_per_node=ranks))
    resources = container_of(made)["resources"]
    assert resources.get("limits", {}).get("nvidia.com/gpu") == expected
    assert resources.get("limits") == resources.get("requests")
    assert ("tolerations" in pod_of(made)) == (expected is not None)


def test_variables_arrive_as_they_are_written() -> None:
    container = container_of(manifests_of(with_env(job(), {"A": "$(B) $HOME $$"})))
    assert container["env"] == [{"name": "A", "value": "$$(B) $HOME $$"}]


def test_a_claim_that_is_mounted_twice_is_one_volume() -> None:
    made = manifests_of(job(section(volumes={"/models": "pvc:disk", "/out/": "pvc:disk"})))
    assert [volume["name"] for volume in pod_of(made)["volumes"]] == ["job", "shm", "data-0"]
    assert container_of(made)["volumeMounts"][-1] == {"name": "data-0", "mountPath": "/out"}
