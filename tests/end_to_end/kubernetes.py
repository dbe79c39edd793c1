"""A job for Kubernetes to submit, and a kubectl of the tests' own that records how it was called."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.end_to_end.command import Outcome, run

JOB = """\
name: Llama_7B
command: complete
model: {ckpt_dir: /models/llama-7b}
parallel: {nnodes: 2, nproc_per_node: 8, device: cuda}
generation: {prompts: [Once upon a time]}
cluster: {kind: kubernetes, image: "registry.example.com/llm/shardrun:1", volumes: {/models: "pvc:models"}}
"""
STAND_IN = """\
#!{python} -SE
import json, os, sys, time
folder = os.path.dirname(os.path.realpath(__file__))
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
for rule in json.load(open(folder + "/answers")):
    if all(any(given.startswith(word) for given in sys.argv[1:]) for word in rule["if"]):
        sys.stdout.write(rule.get("out", ""))
        sys.stdout.flush()
        sys.stderr.write(rule.get("err", ""))
        time.sleep(rule.get("sleep", 0))
        sys.exit(rule.get("code", 0))
sys.exit("error: the stand-in has no answer to " + " ".join(sys.argv[1:]))
"""
MADE = "Job llama-7b team u1\nService llama-7b team u2\nConfigMap llama-7b team u3\n"
Rule = dict[str, Any]
CREATED: list[Rule] = [
    {"if": ["create", "--dry-run=server"], "out": MADE},
    {"if": ["create"], "out": MADE},
    {"if": ["patch"], "out": "patched\n"},
]


class StandIn:
    """A kubectl of our own on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "kubectl"
        program.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
        program.chmod(0o755)

    def answers(self, rules: Sequence[Rule]) -> None:
        partial = self.folder / "partial"
        partial.write_text(json.dumps(rules), encoding="utf-8")
        partial.replace(self.folder / "answers")  # it may be asked meanwhile

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def environment(folder: Path) -> dict[str, str]:
    """Of the command: the stand-in in folder/bin first on PATH, records of jobs in a folder of the test."""
    return {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SHARDRUN_STATE_DIR": str(folder / "state"),
        "KUBECONFIG": "/nonexistent",
        "HOME": str(folder),
    }


def submit(case: Path, env: Mapping[str, str], *words: str) -> Outcome:
    """`submit` of JOB, as `written` writes it."""
    return run(["submit", "job.yaml", *words], case, env=env)


def pods(*states: Mapping[str, Any], phase: str = "Running", message: str = "") -> str:
    """`kubectl get pods` of containers in these states; {} is one that has no node."""
    items = []
    for index, state in enumerate(states):
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        items.append(
            {
                "metadata": {
                    "name": f"llama-7b-{index}-abcde",
                    "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                    "ownerReferences": [{"uid": "u1"}],
                },
                "status": {
                    "phase": phase if state else "Pending",
                    "containerStatuses": [{"name": "shardrun", "state": state}] if state else [],
                    "conditions": [] if state else [unscheduled],
                },
            }
        )
    return json.dumps({"items": items})


def job_object(*conditions: Mapping[str, str]) -> str:
    status = {"conditions": [{"status": "True", **condition} for condition in conditions]}
    return json.dumps({"metadata": {"name": "llama-7b", "uid": "u1"}, "spec": {"completions": 2}, "status": status})


def until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
