"""What pods of Kubernetes run, as processes of this host at an address of it."""

import os
import shlex
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.command import Running, assert_done, run
from tests.end_to_end.kubernetes import environment, until

ROOT = Path(__file__).resolve().parents[2]


def test_two_pods_run_what_their_manifests_say(case: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    words = [
        "submit",
        str(ROOT / "configs" / "kubernetes.yaml"),
        f"model.ckpt_dir={ROOT / 'configs' / 'demo'}",
        "generation.max_gen_len=8",
        "generation.temperature=0",
        "--dry_run",
    ]
    printed = run(words, case, env=env).out
    documents = list(yaml.safe_load_all(printed[printed.index("# Written by") :]))
    (case / "job.yaml").write_text(documents[2]["data"]["job.yaml"], encoding="utf-8")
    (container,) = documents[0]["spec"]["template"]["spec"]["containers"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"

    def pod(index: int) -> Running:
        text = shlex.join([sys.executable, *container["command"][1:], *container["args"]])
        for old, new in (
            ("/etc/shardrun/", ""),
            ("$(JOB_COMPLETION_INDEX)", str(index)),
            ("demo-k8s-0.demo-k8s:29500", endpoint),
        ):
            assert old in text
            text = text.replace(old, new)
        return Running([], case, env={**env, "PYTHONPATH": str(ROOT)}, wrapper=["sh", "-c", f"exec {text}"])

    with pod(1) as second, pod(0) as first:
        outcome, other = first.end(), second.end()
    assert_done(outcome)
    assert_done(other)
    assert outcome.out.strip()
    assert other.out == ""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_pod_waits_for_the_first_ones_name(case: Path) -> None:
    hosts = case / "hosts"
    hosts.write_text("127.0.0.1 localhost\n", encoding="utf-8")
    shell = f"mount --bind {hosts} /etc/hosts && exec {sys.executable} -P -m launcher.cluster.kubernetes.pod"
    shell += " run missing.yaml parallel.rdzv_endpoint=first.pod:29500 parallel.join_timeout_s=20"
    wrapper = ["unshare", "--mount", "sh", "-c", shell]
    with Running([], case, env={"PYTHONPATH": str(ROOT)}, wrapper=wrapper) as waiting:
        time.sleep(1.5)
        assert waiting.process.poll() is None, waiting.err
        with hosts.open("a", encoding="utf-8") as file:
            file.write("127.0.0.1 first.pod\n")
        outcome = waiting.end()
    assert outcome.code == 2
    assert "missing.yaml" in outcome.errors[0]


def test_behind_a_failure_the_other_pods_outlive_the_first(case: Path) -> None:
    """Until Kubernetes has seen the first pod's end, or ends them."""

    def pod(index: int) -> Running:
        words = "run missing.yaml parallel.rdzv_endpoint=localhost:9 parallel.join_timeout_s=5"
        shell = f"exec {sys.executable} -P -m launcher.cluster.kubernetes.pod {words} parallel.node_rank={index}"
        return Running([], case, env={"PYTHONPATH": str(ROOT)}, wrapper=["sh", "-c", shell])

    with pod(0) as first, pod(1) as second:
        outcome = first.end()
        until(lambda: "missing.yaml" in second.err)
        assert second.process.poll() is None
        second.process.terminate()
        other = second.end()
    assert (outcome.code, other.code) == (2, 2)
    assert outcome.err == other.err
