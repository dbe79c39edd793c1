"""The scripts of a Slurm job: what is in them, and that nothing in a job becomes more than a value (FAULTS F100)."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cluster.slurm.checks import check_job
from launcher.cluster.slurm.script import job_script, node_script, sbatch_options
from launcher.settings.cluster_options import SlurmSection
from launcher.settings.job import Job
from launcher.settings.options import CompleteSection, ModelSection, ParallelSection, RunOptions
from parallel.errors import RefusedError

FOLDER = Path("/shared/my jobs/100%/demo-1")


def job_of(
    parallel: Mapping[str, Any] | None = None, name: str = "demo", env: dict[str, str] | None = None, **cluster: Any
) -> Job:
    options = RunOptions(
        command="complete",
        model=ModelSection(ckpt_dir="/ckpt"),
        parallel=ParallelSection(**parallel or {}),
        generation=CompleteSection(prompts=["a"]),
    )
    return Job(
        name=name, command="complete", options=options, cluster=SlurmSection(kind="slurm", **cluster), env=env or {}
    )


def section_of(job: Job) -> SlurmSection:
    assert isinstance(job.cluster, SlurmSection)
    return job.cluster


def options_of(job: Job) -> list[str]:
    return [shlex.split(option)[0] for option in sbatch_options(job, section_of(job), FOLDER)]


def test_the_options_of_sbatch_are_those_of_the_job() -> None:
    job = job_of(
        {"nnodes": 2, "nproc_per_node": 8, "device": "cuda"},
        partition="gpu",
        account="lab",
        time="1-02:00:00",
        mem="64G",
        constraint="a100|h100",
        exclude="n[03-07]",
        extra={"mail_user": "a@b.c", "signal": "B:USR1@60", "contiguous": ""},
    )
    assert options_of(job) == [
        "--job-name=demo",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--partition=gpu",
        "--account=lab",
        "--time=1-02:00:00",
        "--mem=64G",
        "--constraint=a100|h100",
        "--cpus-per-task=8",
        "--gpus-per-node=8",
        "--exclude=n[03-07]",
        "--output=/shared/my jobs/100%%/demo-1/slurm-%j.log",
        "--open-mode=append",
        "--no-requeue",
        "--mail-user=a@b.c",
        "--signal=B:USR1@60",
        "--contiguous",
    ]


def test_no_gpus_are_asked_for_where_the_job_does_not_say_cuda() -> None:
    assert not [option for option in options_of(job_of({"nproc_per_node": 2})) if "gpus" in option]
    assert "--gpus-per-node=4" in options_of(job_of({"nproc_per_node": 2}, gpus_per_node=4))
    otherwise = options_of(job_of({"nproc_per_node": 2, "device": "cuda"}, gpus_per_node=0, extra={"gres": "gpu:2"}))
    assert [option for option in otherwise if "gpu" in option] == ["--gres=gpu:2"]


def test_a_whole_node_gives_all_its_cores() -> None:
    job = job_of({"nproc_per_node": 2}, exclusive=True)
    assert "--exclusive" in options_of(job)
    script = job_script(job, section_of(job), FOLDER)
    assert "cpus-per-task" not in script
    assert "--cpus-per-task=2" in job_script(job_of({"nproc_per_node": 2}), SlurmSection(kind="slurm"), FOLDER)


def test_a_job_that_slurm_may_start_again_says_so() -> None:
    assert "--requeue" in options_of(job_of(requeue=True))


def test_one_node_meets_nobody() -> None:
    job = job_of()
    assert "scontrol" not in job_script(job, section_of(job), FOLDER)
    assert "rdzv" not in node_script(job, section_of(job), FOLDER)


def test_the_port_is_the_jobs_own_or_the_one_that_it_says() -> None:
    assert "$head:$((20000 + SLURM_JOB_ID % 20000))" in job_script(
        job_of({"nnodes": 2}), SlurmSection(kind="slurm"), FOLDER
    )
    assert "$head:4000" in job_script(job_of({"nnodes": 2}), SlurmSection(kind="slurm", port=4000), FOLDER)


@pytest.mark.parametrize("nnodes", [1, 2])
def test_bash_can_read_both_scripts(nnodes: int) -> None:
    job = job_of({"nnodes": nnodes}, env={"A": "it's"}, setup=["module load cuda || true", "export B=$HOME"])
    for script in (job_script(job, section_of(job), FOLDER), node_script(job, section_of(job), FOLDER)):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"partition": "gpu; rm -rf /"}, "cluster.partition is 'gpu; rm -rf /'; wanted names"),
    ({"partition": "$(id)"}, "cluster.partition is '$(id)'"),
    ({"account": "a\n#SBATCH --uid=0"}, "cluster.account is 'a\\n#SBATCH --uid=0'"),
    ({"time": "1h"}, "cluster.time is '1h'; wanted minutes (30)"),
    ({"time": "12:3"}, "cluster.time is '12:3'"),
    ({"mem": "64GB"}, "cluster.mem is '64GB'; wanted a whole number with K, M, G or T behind it, as 64G"),
    ({"nodelist": "n1 n2"}, "cluster.nodelist is 'n1 n2'; wanted node names"),
    ({"exclude": "`id`"}, "cluster.exclude is '`id`'"),
    ({"constraint": "a\nb"}, "cluster.constraint is 'a\\nb'; wanted one line of text"),
    ({"output": "/x\\%j"}, "cluster.output is '/x\\\\%j'; wanted one line of text, without a backslash"),
    ({"output": "/x\n#SBATCH --uid=0"}, "cluster.output is"),
    ({"extra": {"--gres": "gpu:1"}}, "cluster.extra has '--gres'; wanted the name of an option of sbatch, without --"),
    ({"extra": {"gres": "gpu:1\n#SBATCH --uid=0"}}, "cluster.extra.gres is"),
    ({"extra": {"a=b c": "x"}}, "cluster.extra has 'a=b c'"),
    ({"extra": {"nodes": "3"}}, "cluster.extra.nodes cannot be given: the script says --nodes itself; set parallel"),
    ({"extra": {"wrap": "id"}}, "cluster.extra.wrap cannot be given"),
    ({"extra": {"gpus-per-node": "3"}}, "cluster.extra.gpus-per-node has a key of its own; write cluster.gpus_per_"),
    ({"setup": ["ok", "a\nb"]}, "cluster.setup, item 1, is 'a\\nb'; wanted one line of shell"),
]


@pytest.mark.parametrize(("cluster", "says"), WRONG)
def test_what_cannot_stand_in_a_script_is_refused(cluster: dict[str, Any], says: str) -> None:
    job = job_of(**cluster)
    with pytest.raises(RefusedError) as refused:
        check_job(job, section_of(job), FOLDER)
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_names_variables_and_folders_are_checked_too_and_all_errors_are_told_at_once() -> None:
    job = job_of(name="a b", env={"A-B": "x", "C": "y\nz"}, time="soon")
    with pytest.raises(RefusedError) as refused:
        check_job(job, section_of(job), Path("/shared/new\nline"))
    assert [line.partition(";")[0] for line in str(refused.value).splitlines()] == [
        "name is 'a b'",
        "the job's folder would be '/shared/new\\nline'",
        "cluster.time is 'soon'",
        "env has 'A-B'",
        "env.C is 'y\\nz'",
    ]


TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=40).filter(str.isprintable)
LINES = TEXTS.filter(lambda text: "\\" not in text)


@settings(max_examples=200, deadline=None)
@given(LINES, LINES, LINES)
def test_any_value_stands_in_an_option_as_one_word(constraint: str, output: str, comment: str) -> None:
    job = job_of(constraint=constraint or "x", output=output or "x", extra={"comment": comment})
    check_job(job, section_of(job), FOLDER)
    assert f"--constraint={constraint or 'x'}" in options_of(job)
    assert f"--output={output or 'x'}" in options_of(job)
    assert f"--comment={comment}" in options_of(job) or (comment == "" and "--comment" in options_of(job))


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A program in Python's place that tells its arguments and its environment, and ends as it is told."""
    program = tmp_path / "stand in"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
        "sys.exit(int(os.environ.get('CODE', 0)))\n"
    )
    program.chmod(0o755)
    return program


def run_node(folder: Path, stand_in: Path, job: Job, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run node.sh as the second node's."""
    folder.mkdir(exist_ok=True)
    script = node_script(job, section_of(job), folder)
    script = script.replace(shlex.quote(sys.executable), shlex.quote(str(stand_in)))
    (folder / "node.sh").write_text(script)
    return subprocess.run(
        ["bash", str(folder / "node.sh"), *words],
        env={"PATH": os.environ["PATH"], "SLURM_NODEID": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_node_runs_the_launcher_with_its_number_and_keeps_how_it_ended(tmp_path: Path, stand_in: Path) -> None:
    folder = tmp_path / "it's $(mine)"
    job = job_of({"nnodes": 2}, env={"CODE": "3"})
    done = run_node(folder, stand_in, job, "n1:20017", "17-0")
    words, environ = json.loads(done.stdout)
    assert words == [
        "-P",
        "-m",
        "launcher",
        "run",
        str(folder / "job.yaml"),
        f"parallel.log_dir={folder}/logs",
        "parallel.rdzv_backend=static",
        "parallel.node_rank=1",
        "parallel.rdzv_endpoint=n1:20017",
        "parallel.rdzv_id=17-0",
    ]
    assert Path(environ["PYTHONPATH"], "launcher", "cluster").is_dir()
    assert done.returncode == 3
    assert (folder / "result-1").read_text() == "3\n"
    assert sorted(path.name for path in folder.iterdir()) == ["node.sh", "result-1"]


def test_a_line_of_setup_that_fails_is_named_and_nothing_is_run(tmp_path: Path, stand_in: Path) -> None:
    done = run_node(tmp_path / "job", stand_in, job_of(setup=["export A=1", "nosuch load cuda"]))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "this line of cluster.setup failed: nosuch load cuda" in done.stderr
    assert (tmp_path / "job" / "result-1").read_text() == "2\n"


def test_what_setup_sets_reaches_the_ranks_and_the_job_has_the_last_word(tmp_path: Path, stand_in: Path) -> None:
    job = job_of(setup=["export A=setup B=setup", "unset_is_fine=$NOSUCH"], env={"B": "job"})
    environ = json.loads(run_node(tmp_path / "job", stand_in, job).stdout)[1]
    assert (environ["A"], environ["B"]) == ("setup", "job")


def test_no_variable_of_the_job_is_read_by_the_shell(tmp_path: Path, stand_in: Path) -> None:
    awkward = ["; touch pwned", "$(touch pwned)", "`touch pwned`", "'\"$HOME\\", "${X:-y} * ~ #", "", "-n", "é 日本"]
    env = {f"V{number}": value for number, value in enumerate(awkward)}
    environ = json.loads(run_node(tmp_path / "job", stand_in, job_of(env=env)).stdout)[1]
    assert {name: environ[name] for name in env} == env
    assert not list(Path.cwd().glob("pwned"))
