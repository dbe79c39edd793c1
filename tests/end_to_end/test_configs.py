"""The files of configs/: each is valid, says how it is run, and can be run dry, which starts and writes nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from launcher.ranks.dry_run import dry_run
from launcher.settings.job import Job, read_job
from launcher.settings.job_file import read_job_file
from launcher.settings.json_schema import job_schema
from launcher.settings.places import Problems
from parallel.environment import Environment
from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import assert_says, run, snapshot

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
DEMO = CONFIGS / "demo.yaml"
Dry = Callable[[Job], str]


@pytest.fixture
def dry(capsysbinary: pytest.CaptureFixture[bytes]) -> Dry:
    """What a dry run of a job prints."""

    def printed(job: Job) -> str:
        assert dry_run(job, ["run", "job.yaml", "--dry_run"], Environment()) == 0
        return capsysbinary.readouterr().out.decode()

    return printed


def test_there_is_a_file_for_every_usual_model() -> None:
    names = {path.stem for path in FILES}
    models = {"llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"}
    assert names >= {"demo", "slurm", "kubernetes", *models, "llama-3.1-70b-two-nodes", "codellama-7b-infill"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dry_run_of_it_prints_the_same_job_again(path: Path, tmp_path: Path, dry: Dry) -> None:
    job = read_job(path)
    assert job.name == path.stem or path.stem in ("slurm", "kubernetes")
    text = dry(job)
    assert "# processes: " in text
    again = tmp_path / "job.yaml"
    again.write_text(text, encoding="utf-8")
    assert read_job(again) == job


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_valid_by_the_schema(path: Path) -> None:
    document = {key: item.plain() for key, item in read_job_file(path, Problems()).items()}
    jsonschema.Draft202012Validator(job_schema()).validate(document)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_head_says_how_it_is_run_and_every_override_there_is_one(path: Path) -> None:
    head = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert re.search(rf"^#   shardrun (run|submit) configs/{re.escape(path.name)}", head, re.MULTILINE)
    for override in re.findall(r"\b(?:model|parallel|generation|cluster)\.\w+=[^\s,;):]+", head):
        read_job(path, [override.removesuffix(".")])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["parallel.nproc_per_node=2"],
            [
                "# processes: 2 on this host, each\n",
                "-P -m launcher run job.yaml\n",
                "#   WORLD_SIZE=2\n",
                "#   RANK=1 LOCAL_RANK=1\n",
                "# checked before anything is started:\n",
                "#   1 request, the longest of 5 tokens\n",
            ],
        ),
        (["parallel.nproc_per_node=1", "env.NCCL_DEBUG=INFO"], ["# processes: one, this one", "#   NCCL_DEBUG=INFO\n"]),
        (
            ["parallel.nnodes=3"],
            [
                "# hosts: 3; 6 ranks in all, MP 6\n",
                "#   every host needs parallel.rdzv_endpoint=HOST:PORT, of host 0; it is not given\n",
                "parallel.node_rank=N, with N from 0 to 2\n",
                "on host N, RANK begins at 2 x N",
            ],
        ),
        (
            ["parallel.nnodes=2", "parallel.node_rank=1", "parallel.rdzv_endpoint=node0:29400", "parallel.log_dir=/l"],
            [
                "# hosts: 2, this one is host 1; 4 ranks in all, MP 4\n",
                "#   they meet at node0:29400\n",
                "#   RANK=3 LOCAL_RANK=1\n",
                "# logs: /l/demo-DATE-TIME-PID/rank*.log\n",
            ],
        ),
        (["model.ckpt_dir=/nowhere"], ["# not checked: /nowhere is not there on this host\n"]),
        (["cluster.kind=slurm"], ["# `shardrun submit` sends this job to slurm; `shardrun run` runs it here:\n"]),
        (['generation.stop=["\\n", "a"]', "generation.seed=1"], ["  stop:\n", "  seed: 1  # default\n"]),
    ],
    ids=lambda value: " ".join(value)[:40] if "=" in value[0] else None,
)
def test_a_dry_run_says_what_would_be_started(overrides: list[str], says: list[str], dry: Dry) -> None:
    assert_says(dry(read_job(DEMO, overrides)), says)


def test_the_command_runs_dry_and_writes_nothing(case: Path) -> None:
    before, configs = snapshot(case), snapshot(CONFIGS)
    outcome = run(["run", str(DEMO), "generation.temperature=0", "--dry_run"], case)
    assert (outcome.code, outcome.err, outcome.left) == (0, "", [])
    assert_says(outcome.out, ["\n  temperature: 0.0\n", f"launcher run {DEMO} generation.temperature=0\n"])
    assert (snapshot(case), snapshot(CONFIGS)) == (before | snapshot(case / "tmp"), configs)


def test_a_dry_run_refuses_what_a_run_would_refuse(healthy: Callable[[int, Sizes], Path], case: Path) -> None:
    words = [f"model.ckpt_dir={healthy(1, TINY)}", "model.max_seq_len=8", 'generation.prompts=["the old boat"]']
    outcome = run(["run", "--dry-run", str(DEMO), *words], case)
    assert outcome.code == 2
    assert "# processes: 2 on this host, each\n" in outcome.out
    assert len(outcome.errors) == 1
    assert "Traceback" not in outcome.err
