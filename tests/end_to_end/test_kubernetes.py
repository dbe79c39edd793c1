"""Jobs for Kubernetes by the real command. There is no cluster here: kubectl is a stand-in written by the tests, which
records how it was called and answers from a file."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.command import Running, assert_done, assert_refused, run
from tests.end_to_end.kubernetes import CREATED, JOB, StandIn, environment, job_object, pods, submit, until


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "bin")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


@pytest.fixture
def written(case: Path) -> Path:
    (case / "job.yaml").write_text(JOB, encoding="utf-8")
    return case


def test_a_job_is_checked_by_the_server_and_then_made_and_remembered(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    stand_in.answers(CREATED)
    outcome = submit(written, env)
    assert_done(outcome, ["in the cluster the job is called llama-7b", "shardrun logs llama-7b --follow"])
    assert outcome.out == "submitted Llama_7B: llama-7b\n"
    (folder,) = (written / "shardrun-jobs").iterdir()
    checked, created, *patched = stand_in.calls
    assert checked[:2] == ["create", f"--filename={folder / 'job.k8s.yaml'}"]
    assert "--dry-run=server" in checked
    assert "--dry-run=server" not in created
    assert [call[1] for call in patched] == ["service/llama-7b", "configmap/llama-7b"]
    assert all('"uid": "u1"' in word for call in patched for word in call if word.startswith("--patch="))
    kinds = [document["kind"] for document in yaml.safe_load_all((folder / "job.k8s.yaml").read_text(encoding="utf-8"))]
    assert kinds == ["Job", "Service", "ConfigMap"]


def test_a_dry_run_prints_the_manifests_and_asks_nobody(written: Path, env: dict[str, str], stand_in: StandIn) -> None:
    outcome = submit(written, env, "--dry_run")
    assert_done(outcome)
    assert "completionMode: Indexed" in outcome.out
    assert "kubectl create" in outcome.out
    assert stand_in.calls == []
    assert sorted(path.name for path in written.iterdir()) == ["job.yaml", "tmp"]


def test_without_kubectl_the_manifests_are_written_and_the_way_on_is_told(written: Path, env: dict[str, str]) -> None:
    outcome = submit(written, {**env, "PATH": "/nonexistent"})
    assert_refused(outcome, ["no kubectl on this host; the manifests are in", "`kubectl create -f"], alone=False)
    (folder,) = (written / "shardrun-jobs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["job.k8s.yaml", "job.yaml"]


def test_all_that_is_wrong_with_the_section_is_told_before_anything_is_written(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    outcome = submit(written, env, "cluster.memory=8GB", "cluster.image=A", "name=___")
    assert (outcome.code, outcome.out) == (2, "")
    for said in ("name is '___'; Kubernetes wants", "cluster.image is 'A'; wanted", "cluster.memory is '8GB'; wanted"):
        assert f"\n{said}" in outcome.err
    assert stand_in.calls == []
    assert not (written / "shardrun-jobs").exists()


def test_a_name_that_is_taken_is_refused_and_nothing_is_left(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    err = 'Error from server (AlreadyExists): error when creating "x": jobs.batch "llama-7b" already exists\n'
    stand_in.answers([{"if": ["create"], "err": err, "code": 1}])
    outcome = submit(written, env)
    says = ['the cluster has a llama-7b already (jobs.batch "llama-7b" already exists)', "name=NAME"]
    assert_refused(outcome, says, alone=False)
    assert len(stand_in.calls) == 1
    assert not (written / "shardrun-jobs").exists()


def test_what_a_failed_creation_has_made_is_removed(written: Path, env: dict[str, str], stand_in: StandIn) -> None:
    err = "Error from server (Forbidden): services is forbidden\n"
    stand_in.answers(
        [
            CREATED[0],
            {"if": ["create"], "out": "Job llama-7b team u1\n", "err": err, "code": 1},
            {"if": ["delete", "job/llama-7b"], "out": "job.batch/llama-7b\n"},
        ]
    )
    outcome = submit(written, env)
    assert_refused(outcome, ["services is forbidden; ask who looks after the cluster for that right"], alone=False)
    assert stand_in.calls[-1][:2] == ["delete", "job/llama-7b"]


def test_status_says_what_a_job_waits_for_and_how_it_ended(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    stand_in.answers(CREATED)
    assert_done(submit(written, env))
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    stand_in.answers(
        [{"if": ["get", "job"], "out": job_object()}, {"if": ["get", "pods"], "out": pods({}, {}, message=message)}]
    )
    waiting = run(["status", "llama-7b"], written, env=env)
    assert_done(waiting)
    assert "waiting: 0 of 2 pods run; waiting: llama-7b-0-abcde and 1 more for Unschedulable: " + message in waiting.out
    failed = {"terminated": {"exitCode": 3, "reason": "Error", "message": "shardrun: error: rank 9 on x was killed"}}
    ended = [
        {"if": ["get", "job"], "out": job_object({"type": "Failed", "reason": "PodFailurePolicy"})},
        {"if": ["get", "pods"], "out": pods({"running": {}}, failed)},
    ]
    stand_in.answers(ended)
    outcome = run(["status", "Llama_7B", "--json"], written, env=env)
    assert_done(outcome)
    told = json.loads(outcome.out)
    assert (told["state"], told["exit_code"], told["word"]) == ("failed", 3, "PodFailurePolicy")
    assert told["detail"] == "pod llama-7b-1-abcde ended with exit code 3: rank 9 on x was killed"


def test_the_log_is_followed_from_the_start_of_the_first_pod_to_its_end(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    stand_in.answers(CREATED)
    assert_done(submit(written, env))
    image = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    job = {"if": ["get", "job"], "out": job_object()}
    stand_in.answers([job, {"if": ["get", "pods"], "out": pods(image, image)}])
    before = run(["logs", "llama-7b"], written, env=env)
    assert_refused(before, ["llama-7b has no output yet: pod llama-7b-0-abcde waits for ErrImagePull: not found"])
    with Running(["logs", "llama-7b", "--follow"], written, env=env) as following:
        until(lambda: "waiting for ErrImagePull: not found" in following.err)
        done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        stand_in.answers(
            [
                job,
                {"if": ["get", "pods"], "out": pods(done, done, phase="Succeeded")},
                {"if": ["logs", "--follow", "llama-7b-0-abcde", "--container=shardrun"], "out": "Once upon a time\n"},
            ]
        )
        outcome = following.end()
    assert_done(outcome)
    assert outcome.out == "Once upon a time\n"


def test_the_log_of_the_pod_that_failed_is_shown_where_the_first_has_gone(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    stand_in.answers(CREATED)
    assert_done(submit(written, env))
    failed = json.loads(pods({}, {"terminated": {"exitCode": 3, "reason": "Error"}}, phase="Failed"))
    stand_in.answers(
        [
            {"if": ["get", "pods"], "out": json.dumps({"items": failed["items"][1:]})},
            {"if": ["logs", "llama-7b-1-abcde"], "out": "shardrun: error: the cause\n"},
        ]
    )
    outcome = run(["logs", "llama-7b"], written, env=env)
    assert_done(outcome, ["pod 0 has gone; this is the output of pod llama-7b-1-abcde, which failed"])
    assert outcome.out == "shardrun: error: the cause\n"


@pytest.mark.drill
def test_a_log_whose_connection_was_cut_is_gone_on_with(written: Path, env: dict[str, str], stand_in: StandIn) -> None:
    stand_in.answers(CREATED)
    assert_done(submit(written, env))
    going = {"running": {}}
    logs = [
        {"if": ["logs", "--follow", "--since="], "out": "second\n"},
        {"if": ["logs", "--follow"], "out": "first\n", "sleep": 1},
    ]
    stand_in.answers([{"if": ["get", "pods"], "out": pods(going, going)}, *logs])
    with Running(["logs", "llama-7b", "--follow"], written, env=env) as following:
        until(lambda: "was cut; going on" in following.err)
        done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        stand_in.answers([{"if": ["get", "pods"], "out": pods(done, done, phase="Succeeded")}, *logs])
        outcome = following.end()
    assert_done(outcome)
    assert outcome.out == "first\nsecond\n"


def test_ctrl_c_while_following_leaves_no_kubectl(written: Path, env: dict[str, str], stand_in: StandIn) -> None:
    stand_in.answers(CREATED)
    assert_done(submit(written, env))
    going = {"running": {}}
    stand_in.answers(
        [
            {"if": ["get", "pods"], "out": pods(going, going)},
            {"if": ["logs", "--follow"], "out": "so far\n", "sleep": 60},
        ]
    )
    with Running(["logs", "llama-7b", "--follow"], written, env=env) as following:
        following.wait_for_output()
        following.process.send_signal(signal.SIGINT)
        outcome = following.end()
    assert (outcome.code, outcome.out, outcome.err) == (130, "so far\n", "")
    assert outcome.left == []


def test_cancel_deletes_all_that_was_made_and_waits_for_the_pods(
    written: Path, env: dict[str, str], stand_in: StandIn
) -> None:
    stand_in.answers(CREATED)
    assert_done(submit(written, env))
    gone = 'Error from server (NotFound): jobs.batch "llama-7b" not found\n'
    stand_in.answers(
        [
            {"if": ["delete"], "out": "job.batch/llama-7b\n"},
            {"if": ["get", "pods"], "out": pods()},
            {"if": ["get", "job"], "err": gone, "code": 1},
        ]
    )
    assert_done(run(["cancel", "Llama_7B"], written, env=env))
    deleted = next(call for call in stand_in.calls if call[0] == "delete")
    assert deleted[1:4] == ["job.batch/llama-7b", "service/llama-7b", "configmap/llama-7b"]
    assert "--namespace=team" in deleted
    outcome = run(["status", "llama-7b"], written, env=env)
    assert "cancelled" in outcome.out


@pytest.mark.drill
def test_a_kubectl_that_hangs_is_ended(written: Path, env: dict[str, str], stand_in: StandIn) -> None:
    stand_in.answers([{"if": ["create"], "sleep": 600}])
    outcome = submit(written, env)
    assert_refused(outcome, ["kubectl create took more than 30 s"], limit_s=40, alone=False)
