"""Jobs for Kubernetes with the real kubectl, where it is installed; its server keeps objects and runs none."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import assert_done, assert_refused, run
from tests.end_to_end.kubernetes import JOB, environment, submit
from tests.kubernetes_server import KubernetesServer


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


@pytest.fixture
def written(case: Path) -> Path:
    (case / "job.yaml").write_text(JOB, encoding="utf-8")
    return case


@pytest.fixture
def server(tmp_path: Path, env: dict[str, str]) -> Iterator[KubernetesServer]:
    """A server for the real kubectl, named by `env`."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this host")
    found = KubernetesServer(trainer=True)
    (tmp_path / "config").write_text(found.kubeconfig(), encoding="utf-8")
    env.update(KUBECONFIG=str(tmp_path / "config"), PATH=os.environ["PATH"])
    yield found
    found.close()


@pytest.mark.parametrize("target", ["Job", "TrainJob"])
def test_the_real_kubectl_makes_shows_and_deletes_a_job(
    written: Path, env: dict[str, str], server: KubernetesServer, target: str
) -> None:
    assert_done(submit(written, env, f"cluster.target={target}"))
    made = {"Job": ["configmaps", "jobs", "services"], "TrainJob": ["configmaps", "trainjobs"]}[target]
    assert sorted(resource for resource, _ in server.objects) == made
    head = next(item for item in server.objects.values() if item["kind"] == target)
    others = [item["metadata"]["ownerReferences"] for item in server.objects.values() if item is not head]
    assert others == [[{key: owner[key] for key in owner} for owner in [_owner(head)]]] * len(others)
    server.objects["pods", "p0"] = _pod(head, {"running": {}}, "shardrun" if target == "Job" else "node")
    server.logs["p0"] = "Once upon a time \u2026\n".encode()
    log = run(["logs", "llama-7b"], written, env=env)
    assert_done(log)
    assert log.out == "Once upon a time …\n"
    assert "waiting: 1 of 2 pods run" in run(["status", "llama-7b"], written, env=env).out
    head["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    del server.objects["pods", "p0"]
    assert "done" in run(["status", "llama-7b"], written, env=env).out


def _owner(head: Mapping[str, Any]) -> dict[str, str]:
    named = head["metadata"]
    return {"apiVersion": head["apiVersion"], "kind": head["kind"], "name": named["name"], "uid": named["uid"]}


def _pod(head: Mapping[str, Any], state: Mapping[str, Any], container: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p0",
            "namespace": "team",
            "labels": head["metadata"]["labels"],
            "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
            "ownerReferences": [_owner(head)],
        },
        "spec": {"containers": [{"name": container, "image": "x"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": container, "state": state}]},
    }


def test_the_real_kubectl_says_why_a_job_cannot_be_made(
    written: Path, env: dict[str, str], server: KubernetesServer
) -> None:
    server.forbidden.add(("create", "services"))
    outcome = submit(written, env)
    assert_refused(outcome, ["services is forbidden", "ask who looks after the cluster"], alone=False)
    assert server.objects == {}
    server.forbidden.clear()
    assert_done(submit(written, env))
    assert_refused(submit(written, env), ["the cluster has a llama-7b already", "name=NAME"], alone=False)
    assert_done(run(["cancel", "llama-7b"], written, env=env))
    assert server.objects == {}
    server.close()
    outcome = submit(written, env)
    assert_refused(outcome, ["the cluster cannot be reached", "kubectl cluster-info"], alone=False)


def test_a_cluster_without_kubeflow_trainer_is_told_apart(
    written: Path, env: dict[str, str], server: KubernetesServer
) -> None:
    server.groups.remove("apis/trainer.kubeflow.org/v1alpha1")
    outcome = submit(written, env, "cluster.target=TrainJob")
    assert_refused(outcome, ["wanted Kubeflow Trainer in the cluster, or cluster.target Job"], alone=False)
