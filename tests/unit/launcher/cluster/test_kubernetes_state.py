"""How a job is, from the objects that a cluster gives, and what kubectl's errors become."""

from typing import Any

import pytest

from launcher.cluster.kubernetes.creating import Made, read_made
from launcher.cluster.kubernetes.kubectl import failure
from launcher.cluster.kubernetes.pods import Pod, read_pod
from launcher.cluster.kubernetes.state import decide

Object = dict[str, Any]


def job(*conditions: Object, nodes: int = 2, **metadata: Any) -> Object:
    return {
        "metadata": {"name": "demo", "uid": "u1", **metadata},
        "spec": {"completions": nodes},
        "status": {"conditions": [{"status": "True", **condition} for condition in conditions]},
    }


def pod(index: int, phase: str = "Pending", state: Object | None = None, **status: Any) -> Pod:
    known = [{"name": "shardrun", "state": state}] if state is not None else []
    item = {
        "metadata": {
            "name": f"demo-{index}-abcde",
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "status": {"phase": phase, "containerStatuses": known, **status},
    }
    return read_pod(item, "shardrun")


def ended(index: int, code: int, at: str = "2026-01-01T00:00:00Z", **more: Any) -> Pod:
    state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": at, **more}}
    return pod(index, "Failed" if code else "Succeeded", state)


def running(index: int) -> Pod:
    return pod(index, "Running", {"running": {}})


FAILED = {
    "type": "Failed",
    "reason": "PodFailurePolicy",
    "message": "Container shardrun failed with exit code 3 matching",
}


def test_a_job_whose_pods_wait_for_a_node_says_what_the_scheduler_says() -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    found = decide(job(), [pod(0, conditions=conditions), pod(1, conditions=conditions)])
    assert (found.state, found.word) == ("waiting", "Pending")
    assert found.detail == f"0 of 2 pods run; waiting: demo-0-abcde and 1 more for Unschedulable: {message}"


def test_an_image_that_cannot_be_fetched_is_named_with_what_to_do() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}
    found = decide(job(), [running(0), pod(1, state=waiting)])
    assert found.state == "waiting"
    assert found.detail == (
        '1 of 2 pods run; waiting: demo-1-abcde for ImagePullBackOff: Back-off pulling image "x"; '
        "see cluster.image and cluster.image_pull_secret"
    )


def test_a_job_without_pods_says_what_the_cluster_warns_of() -> None:
    assert decide(job(), [], "FailedCreate: exceeded quota").detail == "FailedCreate: exceeded quota"
    assert decide(job(), []).detail == "no pod yet"


def test_a_job_runs_when_all_its_pods_do() -> None:
    assert decide(job(), [running(0), running(1)]).state == "running"
    found = decide(job(), [running(0), ended(1, 0)])
    assert (found.state, found.detail) == ("running", "1 of 2 pods have ended")


def test_a_job_that_is_complete_is_done() -> None:
    found = decide(job({"type": "Complete"}), [ended(0, 0), ended(1, 0)])
    assert (found.state, found.exit_code) == ("done", 0)


def test_a_failed_job_names_the_pod_that_failed_first_and_its_message() -> None:
    said = "shardrun: step 3\nshardrun: error: rank 1 on demo-1 was killed by SIGKILL\n"
    pods = [ended(0, 143, at="2026-01-01T00:00:01Z"), ended(1, 3, at="2026-01-01T00:00:02Z", message=said)]
    found = decide(job(FAILED), pods)
    assert (found.state, found.word, found.exit_code) == ("failed", "PodFailurePolicy", 3)
    assert found.detail == "pod demo-1-abcde ended with exit code 3: rank 1 on demo-1 was killed by SIGKILL"


def test_a_pod_over_its_memory_is_the_cause_whatever_the_others_say() -> None:
    found = decide(job(FAILED), [ended(0, 3), ended(1, 137, at="2026-01-02T00:00:00Z", reason="OOMKilled")])
    assert found.exit_code == 3  # it ended first, and its own message tells why
    found = decide(job(FAILED), [ended(0, 143), ended(1, 137, reason="OOMKilled")])
    assert found.detail.endswith("exit code 137: it was over its memory limit, cluster.memory (cluster.shm counts too)")


def test_a_pod_that_was_evicted_says_so() -> None:
    evicted = pod(1, "Failed", reason="Evicted", message="The node was low on resource: memory.")
    found = decide(job(FAILED), [evicted])
    assert found.detail == "pod demo-1-abcde failed: Evicted: The node was low on resource: memory."


def test_a_failed_job_whose_pods_have_gone_says_what_the_job_says() -> None:
    found = decide(job(FAILED), [])
    assert (found.state, found.exit_code) == ("failed", 3)
    assert found.detail.startswith("Container shardrun failed with exit code 3")


def test_a_job_over_its_time_says_which_limit() -> None:
    late = {"type": "Failed", "reason": "DeadlineExceeded", "message": "Job was active longer than specified deadline"}
    assert decide(job(late), []).detail == "it was ended by the time limit, cluster.time_s"


def test_a_job_that_is_being_deleted_is_cancelled() -> None:
    assert decide(job(deletionTimestamp="2026-01-01T00:00:00Z"), [running(0)]).state == "cancelled"


def test_a_train_job_that_is_suspended_waits() -> None:
    held = {"type": "Suspended", "message": "TrainJob is suspended"}
    conditions = [{**held, "status": "True"}]
    train = {"metadata": {}, "spec": {"trainer": {"numNodes": 4}}, "status": {"conditions": conditions}}
    found = decide(train, [])
    assert (found.state, found.detail) == ("waiting", "TrainJob is suspended")


@pytest.mark.parametrize(
    ("err", "reason", "said"),
    [
        ('Error from server (NotFound): jobs.batch "demo" not found', "NotFound", 'jobs.batch "demo" not found'),
        (
            'Error from server (AlreadyExists): error when creating "/a/b.yaml": jobs.batch "demo" already exists',
            "AlreadyExists",
            'jobs.batch "demo" already exists',
        ),
        (
            'Error from server (Forbidden): jobs.batch is forbidden: User "me" cannot create resource "jobs"',
            "Forbidden",
            'cannot create resource "jobs"; ask who looks after the cluster for that right, or give cluster.namespace',
        ),
        (
            "error: You must be logged in to the server (Unauthorized)",
            "",
            "kubectl is not logged in: You must be logged in",
        ),
        (
            "E1120 16:21:06.151694   15561 memcache.go:265] long\n"
            "The connection to the server localhost:8080 was refused - did you specify the right host or port?",
            "",
            "the cluster cannot be reached: The connection to the server localhost:8080 was refused - did you specify "
            "the right host or port?; look whether `kubectl cluster-info` answers",
        ),
        (
            "Unable to connect to the server: dial tcp: lookup k8s.example.com: no such host",
            "",
            "the cluster cannot be reached: dial tcp: lookup k8s.example.com: no such host; look whether",
        ),
        (
            'Warning: old\nError from server (NotFound): namespaces "x" not found',
            "NotFound",
            'namespaces "x" not found',
        ),
        ("", "", "kubectl said no reason"),
    ],
)
def test_what_kubectl_says_becomes_a_sentence(err: str, reason: str, said: str) -> None:
    error = failure(err)
    assert error.reason == reason
    assert said in str(error)
    assert "memcache" not in str(error)


def test_what_was_made_is_read_from_kubectls_lines() -> None:
    lines = "Job demo team u1\nService demo team u2\nsomething else\n"
    assert read_made(lines) == [Made("Job", "demo", "team", "u1"), Made("Service", "demo", "team", "u2")]
