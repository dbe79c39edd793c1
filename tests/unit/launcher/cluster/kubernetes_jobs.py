"""Jobs for Kubernetes to test with, and what must hold for any manifests that are made of one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.cluster.kubernetes.manifests import job_manifests
from launcher.cluster.kubernetes.train_job import train_job_manifests
from launcher.settings.cluster_options import KubernetesSection
from launcher.settings.job import Job
from launcher.settings.job_text import job_text
from launcher.settings.options import CompleteSection, ModelSection, ParallelSection, RunOptions

Manifest = dict[str, Any]
IMAGE = "registry.example.com/llm/shardrun:1"
# The grammars as Kubernetes' own documents give them, written down here once more.
RFC_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RFC_1123 = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"|[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
CHOICES = {
    "restartPolicy": {"Never", "OnFailure"},
    "completionMode": {"Indexed", "NonIndexed"},
    "medium": {"", "Memory"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "clusterIP": {"None"},
    "type": {"Directory"},
}


def section(**given: Any) -> KubernetesSection:
    return KubernetesSection(**{"kind": "kubernetes", "image": IMAGE, **given})


def job(cluster: KubernetesSection | None = None, name: str = "demo", **parallel: Any) -> Job:
    options = RunOptions(
        command="complete",
        model=ModelSection(ckpt_dir="/models/llama"),
        parallel=ParallelSection(**parallel),
        generation=CompleteSection(prompts=["Once upon a time"]),
    )
    return Job(name=name, command="complete", options=options, cluster=cluster or section())


def with_env(known: Job, env: Mapping[str, str]) -> Job:
    return replace(known, env=dict(env))


def manifests_of(known: Job) -> list[Manifest]:
    cluster = known.cluster
    assert isinstance(cluster, KubernetesSection)
    make = train_job_manifests if cluster.target == "TrainJob" else job_manifests
    return make(known, cluster, job_text(known))


def pod_of(manifests: Sequence[Manifest]) -> Manifest:
    """The pod's spec; of a TrainJob its patch with the trainer laid into the container, as the runtime does it."""
    head = manifests[0]["spec"]
    if manifests[0]["kind"] == "Job":
        return dict(head["template"]["spec"])
    patch = head["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = dict(patch["template"]["spec"]["template"]["spec"])
    trainer = {key: head["trainer"][key] for key in ("image", "command", "args", "env")}
    resources = {"resources": head["trainer"]["resourcesPerNode"]}
    return {**pod, "containers": [{**pod["containers"][0], **trainer, **resources}]}


def container_of(manifests: Sequence[Manifest]) -> Manifest:
    (container,) = pod_of(manifests)["containers"]
    return dict(container)


def assert_sound(manifests: Sequence[Manifest]) -> None:
    """What a server would refuse, and the schemas let pass."""
    names = {manifest["metadata"]["name"] for manifest in manifests}
    (name,) = names
    assert RFC_1035.fullmatch(name)
    assert len(name) <= 63
    pod, container = pod_of(manifests), container_of(manifests)
    volumes = [volume["name"] for volume in pod["volumes"]]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert len(set(volumes)) == len(volumes)
    assert len(set(paths)) == len(paths)
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert all(path.startswith("/") and ":" not in path and ".." not in path.split("/") for path in paths)
    for amounts in container["resources"].values():
        assert all(QUANTITY.fullmatch(amount) for amount in amounts.values())
    for manifest in manifests:
        _assert_choices(manifest)
    if manifests[0]["kind"] == "Job":
        _assert_found_by_name(manifests, name)


def _assert_found_by_name(manifests: Sequence[Manifest], name: str) -> None:
    spec, service = manifests[0]["spec"], manifests[1]["spec"]
    assert len(f"{name}-{spec['completions'] - 1}") <= 63
    assert spec["completions"] == spec["parallelism"]
    assert spec["template"]["spec"]["subdomain"] == name
    assert service["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert all(LABEL_VALUE.fullmatch(value) for value in service["selector"].values())


def _assert_choices(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in CHOICES and isinstance(item, str):
                assert item in CHOICES[key], (key, item)
            _assert_choices(item)
    elif isinstance(value, list):
        for item in value:
            _assert_choices(item)
