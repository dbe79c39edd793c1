"""Jobs on a real Slurm of two nodes, which this file starts: submitted, looked after, cancelled, and broken."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Outcome, Running, assert_refused, run, snapshot
from tests.slurm_cluster import SlurmCluster, slurm_cluster

# What the demo model goes on with, taking the likeliest tokens; tests/golden compares it with transformers'.
ANSWER = ", there was a little girl named Lily"
DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
NODES = ("n1", "n2")
JOB = """\
name: demo
command: complete
model: {{ckpt_dir: {ckpt_dir}, max_seq_len: 64}}
parallel: {{device: cpu}}
generation: {{prompts: [Once upon a time], max_gen_len: 8, temperature: 0}}
cluster: {{kind: slurm, partition: debug}}
"""
# A job that lasts until it is stopped.
ENDLESS = ("model.max_seq_len=60000", "generation.max_gen_len=60000", "generation.eos_ids=[]")
TWO_NODES = "parallel.nnodes=2"


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster() as started:
        yield started


class Desk:
    """A user's desk: a current folder, with a login node of the cluster."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.env = {**cluster.env, "SHARDRUN_STATE_DIR": str(folder / "state")}

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Running:
        return Running(arguments, self.folder, env={**self.env, **(env or {})}, wrapper=self.cluster.wrapper)

    def type(self, *arguments: str, limit_s: float = 45.0, env: dict[str, str] | None = None) -> Outcome:
        with self.start(*arguments, env=env) as running:
            return running.end(limit_s)

    def write_job(self, ckpt_dir: Path = DEMO) -> None:
        (self.folder / "job.yaml").write_text(JOB.format(ckpt_dir=ckpt_dir))

    def submit(self, *overrides: str, env: dict[str, str] | None = None) -> str:
        """Submit job.yaml; the job's id."""
        outcome = self.type("submit", "job.yaml", *overrides, "--json", env=env)
        assert outcome.code == 0, outcome.err
        return str(json.loads(outcome.out)["job_id"])

    def status(self, job_id: str) -> dict[str, object]:
        outcome = self.type("status", job_id, "--json")
        assert outcome.code == 0, outcome.err
        found: dict[str, object] = json.loads(outcome.out)
        return found

    def log(self, job_id: str) -> str:
        files = [*self.folder.glob(f"shardrun-jobs/*/slurm-{job_id}.log")]
        return files[0].read_text() if files else ""

    def wait_until_at_work(self, job_id: str, limit_s: float = 40.0) -> None:
        deadline = time.monotonic() + limit_s
        while "shardrun: loaded" not in self.log(job_id):
            assert time.monotonic() < deadline, self.log(job_id) + self.cluster.log()
            time.sleep(0.05)
        time.sleep(0.5)  # some steps further

    def submit_endless(self, ckpt_dir: Path, *overrides: str) -> str:
        """Submit a job of two nodes that lasts until it is stopped, and wait until it is at work."""
        self.write_job(ckpt_dir)
        job_id = self.submit(TWO_NODES, *ENDLESS, *overrides)
        self.wait_until_at_work(job_id)
        assert [sorted(self.cluster.ranks(node)) for node in NODES] == [[0], [1]]
        return job_id

    def end_of(self, job_id: str, limit_s: float) -> tuple[str, float]:
        """Wait for the job's end and for the last of its processes; Slurm's word for the end, and the seconds."""
        since = time.monotonic()
        while True:
            shown = self.cluster.run("scontrol", "show", "job", job_id)
            state = re.findall(r"JobState=(\w+)", shown)[0]
            left = {node: self.cluster.processes(node) for node in NODES}
            seconds = time.monotonic() - since
            if state not in ("PENDING", "RUNNING", "COMPLETING") and not any(left.values()):
                return state, seconds
            assert seconds < limit_s, f"{state}, {left}\n{self.log(job_id)}"
            time.sleep(0.1)


@pytest.fixture
def desk(cluster: SlurmCluster, case: Path) -> Iterator[Desk]:
    desk = Desk(cluster, case)
    desk.write_job()
    yield desk
    # Whatever became of the test: the next finds an empty cluster.
    cluster.run("scancel", "--user=root")
    deadline = time.monotonic() + 30
    while cluster.run("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture
def endless(desk: Desk, healthy: Callable[[int, Sizes], Path]) -> Callable[..., str]:
    """`Desk.submit_endless` of a tiny checkpoint."""

    return lambda *overrides: desk.submit_endless(healthy(2, TINY), *overrides)


def reports(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("shardrun: error:")]


def test_a_job_is_submitted_followed_and_known_when_it_has_ended(desk: Desk) -> None:
    awkward = 'cluster.extra={"comment": "it\'s a # $(touch pwned) `x` \\"y\\""}'
    folder = desk.folder / "jobs of $USER, 100%"
    submitted = desk.type("submit", "job.yaml", awkward, f"--folder={folder}", env={"SBATCH_PARTITION": "nosuch"})
    assert submitted.code == 0, submitted.err
    job_id = submitted.out.removeprefix("submitted demo: ").strip()
    assert "which every node must see" in submitted.err
    assert f"next: shardrun status {job_id}, shardrun logs {job_id} --follow, shardrun cancel" in submitted.err
    job_folder = next(folder.iterdir())
    assert {path.name for path in job_folder.iterdir()} >= {"job.yaml", "job.sbatch", "node.sh"}
    comment = re.findall("Comment=(.*)", desk.cluster.run("scontrol", "show", "job", job_id))
    assert [text.strip() for text in comment] == ['it\'s a # $(touch pwned) `x` "y"']

    followed = desk.type("logs", "demo", "--follow")
    assert followed.code == 0, followed.err
    assert followed.out.splitlines()[-1] == ANSWER
    assert f"job {job_id} is done" in followed.err
    status = desk.status(job_id)
    assert (status["state"], status["exit_code"], status["name"]) == ("done", 0, "demo")
    assert desk.type("status").out.startswith(f"{job_id}  demo  done: took ")
    assert json.loads((job_folder / "result.json").read_text())["exit_code"] == 0
    assert not list(desk.folder.rglob("pwned"))


def test_two_nodes_answer_as_one_does(desk: Desk) -> None:
    job_id = desk.submit(TWO_NODES)
    followed = desk.type("logs", job_id, "--follow")
    assert followed.code == 0, followed.err
    assert ANSWER in followed.out.splitlines()
    assert "shardrun: 2 ranks: backend gloo" in followed.out
    assert desk.status(job_id)["state"] == "done"
    assert desk.end_of(job_id, 5)[0] == "COMPLETED"


def test_a_dry_run_prints_every_file_and_touches_nothing(desk: Desk) -> None:
    before = snapshot(desk.folder)
    outcome = desk.type("submit", "job.yaml", TWO_NODES, "cluster.time=12:30:00", "--dry_run")
    assert (outcome.code, outcome.err) == (0, "")
    for said in (
        "/job.yaml\n",
        "#SBATCH --time=12:30:00\n",
        "#SBATCH --nodes=2\n",
        "# would be run: sbatch --test-only",
    ):
        assert said in outcome.out
    assert snapshot(desk.folder) == before
    assert desk.cluster.run("squeue", "--noheader") == ""


REFUSED = {
    "wrong_partition": (
        ["cluster.partition=nosuch"],
        [
            "Slurm refuses the job: invalid partition specified: nosuch",
            "cluster.partition is 'nosuch', there are debug*",
        ],
    ),
    "too_many_nodes": (
        ["parallel.nnodes=3"],
        ["Requested node configuration is not available", "it asks for 3 nodes (parallel.nnodes)", "sinfo -N -l"],
    ),
    "no_such_option": (['cluster.extra={"nosuch": "1"}'], ["unrecognized option '--nosuch=1'"]),
    "a_chat_at_the_terminal": (["command=chat"], ["a chat without generation.dialogs is one at the terminal"]),
    "a_wrong_prompt": (["model.max_seq_len=2"], ["max_seq_len"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_slurm_would_not_run_is_refused_with_the_reason_and_nothing_is_left(desk: Desk, name: str) -> None:
    overrides, says = REFUSED[name]
    before = snapshot(desk.folder)
    if name == "a_chat_at_the_terminal":
        (desk.folder / "job.yaml").write_text(JOB.format(ckpt_dir=DEMO).replace("prompts: [Once upon a time], ", ""))
        before = snapshot(desk.folder)
    assert_refused(desk.type("submit", "job.yaml", *overrides), says)
    assert snapshot(desk.folder) == before
    assert desk.cluster.run("squeue", "--noheader") == ""


def test_a_job_that_waits_tells_why_and_can_be_cancelled(desk: Desk) -> None:
    job_id = desk.submit('cluster.extra={"hold": ""}')
    status = desk.status("demo")
    assert (status["state"], status["word"]) == ("waiting", "PENDING")
    assert status["detail"] == "its user holds it back (scontrol release JOB_ID lets it go) (JobHeldUser)"
    assert_refused(desk.type("logs", job_id), ["there is no output; the job is waiting: its user holds it back"])
    with desk.start("logs", job_id, "--follow") as follower:
        deadline = time.monotonic() + 10
        while "waits: its user holds it back" not in follower.err:
            assert time.monotonic() < deadline, follower.err
            time.sleep(0.02)
        before = follower.err
        os.kill(follower.process.pid, signal.SIGINT)
        outcome = follower.end()
    assert (outcome.code, outcome.err.removeprefix(before)) == (130, "")
    cancelled = desk.type("cancel", job_id)
    assert (cancelled.code, cancelled.err) == (0, f"shardrun: job {job_id} is cancelled\n")
    assert desk.type("cancel", job_id).err == f"shardrun: job {job_id} has ended already: cancelled\n"
    assert desk.status(job_id)["state"] == "cancelled"


def test_a_job_that_is_cancelled_at_work_is_gone_from_both_nodes(desk: Desk, endless: Callable[..., str]) -> None:
    job_id = endless()
    status = desk.status(job_id)
    assert status["state"] == "running"
    assert str(status["detail"]).startswith("on n[1-2] for ")
    with desk.start("logs", job_id, "--follow") as follower:
        outcome = desk.type("cancel", job_id)
        followed = follower.end()
    assert (outcome.code, outcome.err) == (0, f"shardrun: job {job_id} is cancelled\n")
    print(f"{outcome.seconds:.1f} s: {desk.log(job_id)}")
    assert outcome.seconds < 8
    assert desk.end_of(job_id, 5)[0] == "CANCELLED"
    assert "shardrun: stopped by SIGTERM" in desk.log(job_id)
    assert reports(desk.log(job_id)) == []
    assert "Traceback" not in desk.log(job_id)
    assert (followed.code, followed.out) == (0, desk.log(job_id))
    assert "is cancelled" in followed.err


def test_a_rank_that_is_killed_ends_the_job_with_its_name(desk: Desk, endless: Callable[..., str]) -> None:
    job_id = endless()
    os.kill(desk.cluster.ranks("n2")[1], signal.SIGKILL)
    state, seconds = desk.end_of(job_id, 15)
    print(f"{seconds:.1f} s: {state}\n{desk.log(job_id)}")
    assert (state, desk.status(job_id)["exit_code"]) == ("FAILED", 3)
    assert seconds < 5
    [report] = reports(desk.log(job_id))
    assert "rank 1" in report
    assert "n2" in report
    assert "SIGKILL" in report


def test_what_only_the_node_can_see_to_be_wrong_is_in_the_log_and_in_the_status(desk: Desk) -> None:
    desk.write_job(desk.folder / "nosuch")
    submitted = desk.type("submit", "job.yaml")
    assert f"note: {desk.folder}/nosuch is not there on this host; it is checked when the job runs" in submitted.err
    followed = desk.type("logs", "demo", "--follow")
    assert [f"{desk.folder}/nosuch: does not exist" in report for report in reports(followed.out)] == [True]
    assert "is failed: refused; its output says why" in followed.err
    status = desk.status("demo")
    assert (status["state"], status["exit_code"], status["detail"]) == ("failed", 2, "refused; its output says why")


def test_jobs_that_are_not_known_are_refused_with_those_that_are(desk: Desk) -> None:
    assert_refused(desk.type("status", "nosuch"), ["no job 'nosuch' is known; none was submitted from here"])
    job_id = desk.submit('cluster.extra={"hold": ""}')
    assert_refused(desk.type("cancel", "nosuch"), [f"no job 'nosuch' is known; there are {job_id} (demo)"])
    # Of Slurm's own: not submitted from here.
    shutil.rmtree(desk.folder / "state")
    assert desk.status(job_id)["state"] == "waiting"
    assert desk.status("4711")["state"] == "unknown"


def test_a_host_without_slurm_is_told_where_to_type(case: Path) -> None:
    (case / "job.yaml").write_text(JOB.format(ckpt_dir=DEMO))
    before = snapshot(case)
    empty = {"PATH": str(case), "SHARDRUN_STATE_DIR": str(case / "state")}
    assert_refused(run(["submit", "job.yaml"], case, env=empty), ["no sbatch on this host", "login node"])
    assert snapshot(case) == before


def assert_ended_by(desk: Desk, job_id: str, limit_s: float, state: str, code: int, *says: str) -> float:
    """The job ends in time with one report that says all of it, and nothing of it is left on the nodes."""
    word, seconds = desk.end_of(job_id, limit_s)
    print(f"{seconds:.1f} s: {word}\n{desk.log(job_id)}")
    assert (word, desk.status(job_id)["exit_code"]) == (state, code)
    found = reports(desk.log(job_id))
    assert len(found) == 1, desk.log(job_id)
    for said in says:
        assert said in found[0], found
    return seconds


@pytest.mark.drill
def test_a_launcher_that_is_killed_on_the_second_node_is_missed_by_the_first(
    desk: Desk, endless: Callable[..., str]
) -> None:
    job_id = endless()
    os.kill(desk.cluster.launchers("n2")[0], signal.SIGKILL)
    assert_ended_by(desk, job_id, 15, "FAILED", 3, "node 1 (host n2) was lost", "its launcher ended without a word")


@pytest.mark.drill
def test_a_launcher_that_is_killed_on_the_first_node_is_missed_by_the_second(
    desk: Desk, endless: Callable[..., str]
) -> None:
    job_id = endless()
    os.kill(desk.cluster.launchers("n1")[0], signal.SIGKILL)
    assert_ended_by(desk, job_id, 15, "FAILED", 3, "node 0 (host n1) was lost")


@pytest.mark.drill
def test_the_time_limit_ends_the_job_and_is_told(desk: Desk, endless: Callable[..., str]) -> None:
    job_id = endless("cluster.time=1")
    state, _ = desk.end_of(job_id, 120)
    print(desk.log(job_id))
    status = desk.status(job_id)
    assert (state, status["state"], status["exit_code"]) == ("TIMEOUT", "failed", 143)
    assert status["detail"] == "it ran into its time limit of 00:01:00"
    assert "DUE TO TIME LIMIT" in desk.log(job_id)
    assert "shardrun: stopped by SIGTERM" in desk.log(job_id)
    assert "Traceback" not in desk.log(job_id)


@pytest.mark.drill
@pytest.mark.parametrize("node", NODES)
def test_a_node_that_is_cut_off_ends_the_run_on_both(
    case: Path, healthy: Callable[[int, Sizes], Path], node: str
) -> None:
    with slurm_cluster() as own:  # Slurm takes its time to trust such a node again
        desk = Desk(own, case)
        job_id = desk.submit_endless(healthy(2, TINY))
        since = time.monotonic()
        own.pull_cable(node)
        while any(own.launchers(name) or own.ranks(name) for name in NODES):
            assert time.monotonic() - since < 30, desk.log(job_id)
            time.sleep(0.1)
        print(f"{time.monotonic() - since:.1f} s: no process of ours left")
        [report] = reports(desk.log(job_id))
        assert "node 1 (host n2) was lost" in report
        assert "nothing was heard of its launcher for 10 s" in report
        # Slurm's own part: it waits for a node that it cannot reach, up to SlurmdTimeout.
        while (status := desk.status(job_id))["state"] == "running":
            assert time.monotonic() - since < 120, status
            time.sleep(1)
        print(f"{time.monotonic() - since:.1f} s: {status}")
        assert (status["state"], status["exit_code"]) == ("failed", None if node == "n1" else 3)


@pytest.mark.drill
def test_a_node_on_which_setup_fails_ends_the_job_with_its_line(desk: Desk) -> None:
    lines = json.dumps(["test $SLURM_NODEID = 0", "echo ready on $(hostname)"])
    job_id = desk.submit(TWO_NODES, f"cluster.setup={lines}")
    state, seconds = desk.end_of(job_id, 40)
    print(f"{seconds:.1f} s: {state}\n{desk.log(job_id)}")
    assert (state, desk.status(job_id)["exit_code"]) == ("FAILED", 2)
    assert seconds < 10
    assert reports(desk.log(job_id)) == [
        "shardrun: error: on n2 this line of cluster.setup failed: test $SLURM_NODEID = 0"
    ]


@pytest.mark.drill
def test_a_folder_that_the_nodes_do_not_see_is_told(desk: Desk) -> None:
    job_id = desk.submit('cluster.extra={"hold": ""}', f"cluster.output={desk.folder}/%j.log")
    folder = next(desk.folder.glob("shardrun-jobs/*"))
    folder.rename(desk.folder / "elsewhere")
    desk.cluster.run("scontrol", "release", job_id)
    followed = desk.type("logs", job_id, "--follow")
    assert f"shardrun: error: {folder} is not there on n1; submit from a folder that all nodes share" in followed.out
    assert desk.status(job_id)["exit_code"] == 2


@pytest.mark.drill
def test_a_job_that_slurm_starts_again_runs_again_and_is_known_as_such(desk: Desk, endless: Callable[..., str]) -> None:
    job_id = endless("cluster.requeue=true")
    desk.cluster.run("scontrol", "requeue", job_id)
    deadline = time.monotonic() + 180  # Slurm waits for two minutes
    while desk.log(job_id).count("shardrun: loaded") < 2:
        assert time.monotonic() < deadline, desk.log(job_id)
        time.sleep(0.5)
    print(desk.log(job_id))
    assert desk.status(job_id)["state"] == "running"
    assert desk.type("cancel", job_id).code == 0
    assert desk.status(job_id)["state"] == "cancelled"


@pytest.mark.drill
def test_a_controller_that_has_gone_is_told_in_time(case: Path) -> None:
    with slurm_cluster() as own:
        desk = Desk(own, case)
        desk.write_job()
        job_id = desk.submit('cluster.extra={"hold": ""}')
        own.run("scontrol", "shutdown", "slurmctld")
        before = snapshot(case)
        for words in (["status", job_id], ["cancel", job_id], ["submit", "job.yaml"]):
            outcome = desk.type(*words)
            print(f"{words[0]}: {outcome.seconds:.1f} s: {outcome.err.strip()}")
            assert_refused(outcome, ["Slurm's controller cannot be reached", "Unable to contact"], 25, alone=True)
        listed = desk.type("status")
        assert (listed.code, listed.out.startswith(f"{job_id}  demo  unknown: Slurm's controller")) == (0, True)
        assert snapshot(case) == before
