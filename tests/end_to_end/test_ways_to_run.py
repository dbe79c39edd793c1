"""The ways to run the main job, on the demo checkpoint: alone, supervised, under torchrun, from a job file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import Outcome, Running

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo"
PROMPTS = json.dumps(["Once upon a time", "One day, a cat", ""])
FLAGS = ["--prompts", PROMPTS, "--max_gen_len", "24", "--dtype", "float32", "--device", "cpu"]


def run(folder: Path, *arguments: str, wrapper: tuple[str, ...] = ()) -> Outcome:
    with Running(arguments, folder, wrapper=wrapper) as running:
        return running.end()


def objects(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.fixture(scope="module")
def by_mp(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The demo checkpoint cut for 1, 2 and 4 ranks, by the real command."""
    folder = tmp_path_factory.mktemp("demo")
    found = {2: DEMO}
    for mp in (1, 4):
        found[mp] = folder / f"mp{mp}"
        outcome = run(folder, "reshard", str(DEMO), str(found[mp]), "--mp", str(mp))
        assert outcome.code == 0, outcome.err
    return found


@pytest.fixture(scope="module")
def alone(by_mp: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process answers, greedily, with log-probabilities."""
    flags = [*FLAGS, "--temperature", "0", "--json", "--logprobs", "--echo"]
    return objects(run(tmp_path_factory.mktemp("alone"), "complete", "--ckpt_dir", str(by_mp[1]), *flags))


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Tokens equal; log-probabilities within 1e-4, since sums over ranks are in another order (float32)."""
    assert [answer["tokens"] for answer in found] == [answer["tokens"] for answer in expected]
    for answer, other in zip(found, expected, strict=True):
        assert answer["logprobs"][1:] == pytest.approx(other["logprobs"][1:], abs=1e-4)


def test_an_answer_has_the_fields_that_users_rely_on(alone: list[dict[str, Any]]) -> None:
    assert [answer["index"] for answer in alone] == [0, 1, 2]
    assert [answer["prompt"] for answer in alone] == json.loads(PROMPTS)
    for answer in alone:
        assert list(answer) == [
            "index",
            "prompt",
            "generation",
            "prompt_tokens",
            "tokens",
            "logprobs",
            "finish_reason",
        ]
        assert answer["prompt_tokens"][0] == 1
        assert answer["finish_reason"] == "length"
        assert len(answer["tokens"]) == 24
        assert answer["logprobs"][0] is None
        assert len(answer["logprobs"]) == len(answer["prompt_tokens"]) + 24
        assert all(value <= 0 for value in answer["logprobs"][1:])
    assert alone[2]["prompt_tokens"] == [1]


@pytest.mark.parametrize("mp", [2, 4])
def test_supervised_ranks_answer_as_one_process(
    mp: int, by_mp: dict[int, Path], alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    flags = [*FLAGS, "--temperature", "0", "--json", "--logprobs", "--echo", "--nproc_per_node", str(mp)]
    outcome = run(tmp_path, "complete", "--ckpt_dir", str(by_mp[mp]), *flags)
    assert_same(objects(outcome), alone)
    assert f"shardrun: {mp} ranks: backend gloo" in outcome.err
    assert outcome.left == []


def test_torchrun_answers_as_one_process(by_mp: dict[int, Path], alone: list[dict[str, Any]], tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "launcher", "complete"]
    flags = [*FLAGS, "--temperature", "0", "--json", "--logprobs", "--echo", "--log_dir", str(tmp_path / "logs")]
    done = subprocess.run(
        [sys.executable, *torchrun, "--ckpt_dir", str(by_mp[2]), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same([json.loads(line) for line in done.stdout.splitlines()], alone)
    assert done.stderr.count("backend gloo") == 1
    for rank in (0, 1):
        assert f"rank {rank} INFO" in (tmp_path / "logs" / f"rank{rank}.log").read_text()


def test_the_number_of_ranks_of_torchrun_cannot_be_contradicted(by_mp: dict[int, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "launcher"]
        + ["complete", "--ckpt_dir", str(by_mp[4]), *FLAGS, "--nproc_per_node", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    message = "shardrun: error: --nproc_per_node is 4 but 2 ranks were started here (LOCAL_WORLD_SIZE)"
    assert done.stderr.count(message) == 1


def test_streamed_text_is_the_text_that_is_returned(
    by_mp: dict[int, Path], alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    flags = ["--ckpt_dir", str(by_mp[1]), *FLAGS, "--temperature", "0"]
    streamed = run(tmp_path, "complete", *flags, "--stream")
    at_once = run(tmp_path, "complete", *flags)
    assert streamed.code == at_once.code == 0
    assert streamed.out == at_once.out == "\n".join(answer["generation"] + "\n" for answer in alone)
    with_prompt = run(tmp_path, "complete", *flags, "--stream", "--echo")
    assert with_prompt.out.startswith("Once upon a time" + (alone[0]["generation"])[:1])


def test_a_sampled_answer_depends_on_seed_and_prompt_alone(by_mp: dict[int, Path], tmp_path: Path) -> None:
    flags = [*FLAGS, "--temperature", "1", "--top_p", "0.95", "--json"]
    one = objects(run(tmp_path, "complete", "--ckpt_dir", str(by_mp[1]), *flags, "--seed", "5"))
    small_batches = [*flags, "--seed", "5", "--max_batch_size", "2", "--nproc_per_node", "2"]
    two = objects(run(tmp_path, "complete", "--ckpt_dir", str(by_mp[2]), *small_batches))
    other = objects(run(tmp_path, "complete", "--ckpt_dir", str(by_mp[1]), *flags, "--seed", "6"))
    assert [answer["tokens"] for answer in one] == [answer["tokens"] for answer in two]
    assert [answer["tokens"] for answer in one] != [answer["tokens"] for answer in other]


def test_the_demo_job_file_runs_and_takes_overrides(tmp_path: Path) -> None:
    outcome = run(
        tmp_path, "run", str(ROOT / "configs" / "demo.yaml"), "generation.max_gen_len=12", "--generation.seed=3"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Once upon a time")
    assert "2 ranks: backend gloo" in outcome.err


def test_prompts_come_from_files_too(by_mp: dict[int, Path], alone: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Once upon a time\nOne day, a cat\n")
    lines = [json.dumps({"prompt": prompt}) for prompt in json.loads(PROMPTS)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    rest = ["--max_gen_len", "24", "--dtype", "float32", "--temperature", "0", "--json"]
    for name, count in (("p.txt", 2), ("p.jsonl", 3)):
        found = objects(run(tmp_path, "complete", "--ckpt_dir", str(by_mp[1]), "--prompts", f"@{name}", *rest))
        assert [answer["tokens"] for answer in found] == [answer["tokens"] for answer in alone[:count]]


def test_a_debugger_steps_through_the_forward_pass(by_mp: dict[int, Path], tmp_path: Path) -> None:
    attention = ROOT / "model" / "attention.py"
    lines = attention.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "return self.wo(" in text)
    commands = f"b {attention}:{line}\nc\np x_BTD.shape[-1]\nq\n"
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "-m", "launcher", "complete", "--ckpt_dir", str(by_mp[1]), *FLAGS],
        input=commands,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "\n(Pdb) 128\n" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_bare_checkout_runs_without_being_installed(by_mp: dict[int, Path], tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = 'launcher';"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder)];"
        "runpy.run_module('launcher', run_name='__main__')"
    )
    arguments = ["complete", "--ckpt_dir", str(by_mp[1]), "--prompts", '["A"]', "--max_gen_len", "3"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_package_of_the_same_name_elsewhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the package 'model' comes from" in done.stderr
    assert str(tmp_path / "model.py") in done.stderr


@pytest.mark.drill
def test_healthy_runs_end_well_every_time(by_mp: dict[int, Path], tmp_path: Path) -> None:
    """Without destroying the process group one healthy gloo run in two ends with an error."""
    flags = ["--ckpt_dir", str(by_mp[2]), "--prompts", '["A"]', "--max_gen_len", "2", "--nproc_per_node", "2"]
    ends = [run(tmp_path, "complete", *flags) for _ in range(50)]
    assert [outcome.code for outcome in ends] == [0] * 50
    assert [outcome.left for outcome in ends] == [[]] * 50


@pytest.mark.drill
def test_two_runs_at_once_do_not_disturb_each_other(by_mp: dict[int, Path], tmp_path: Path) -> None:
    flags = ["complete", "--ckpt_dir", str(by_mp[2]), *FLAGS, "--temperature", "0", "--nproc_per_node", "2"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for _ in range(10):
        with Running(flags, tmp_path / "a") as first, Running(flags, tmp_path / "b") as second:
            ends = [first.end(), second.end()]
        assert [outcome.code for outcome in ends] == [0, 0]
        assert ends[0].out == ends[1].out
