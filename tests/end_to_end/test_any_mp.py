"""The real command on a number of ranks that is not the number of shards: a note, and the same text."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import Outcome, assert_done, assert_refused, complete, run

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
PROMPTS = ["Once upon a time", "One day, a cat"]
FLAGS = ("--max_gen_len", "16", "--dtype", "float32", "--device", "cpu", "--temperature", "0", "--json")
Cut = Callable[[int], Path]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """The demo checkpoint, which has 2 shards, 8 heads and 4 KV heads, cut by the real command."""
    place = tmp_path_factory.mktemp("demo")
    made = {2: DEMO}

    def folder(mp: int) -> Path:
        if mp not in made:
            made[mp] = place / f"mp{mp}"
            assert_done(run(["reshard", str(DEMO), str(made[mp]), "--mp", str(mp)], place))
        return made[mp]

    return folder


def words(folder: Path, *flags: str) -> list[str]:
    return ["complete", "--ckpt_dir", str(folder), "--prompts", json.dumps(PROMPTS), *FLAGS, *flags]


def tokens(out: str) -> list[list[int]]:
    answers: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1]
    assert all(len(answer["tokens"]) == 16 for answer in answers)
    return [answer["tokens"] for answer in answers]


@pytest.fixture(scope="module")
def expected(cut: Cut, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """The tokens of two shards on two ranks."""
    outcome = run(words(DEMO, "--nproc_per_node", "2"), tmp_path_factory.mktemp("expected"))
    assert_done(outcome)
    assert "cut it anew" not in outcome.err
    return tokens(outcome.out)


def assert_noted(err: str, folder: Path, shards: int, ranks: int) -> None:
    """One note, that says both numbers and the command that would cut the files once for all."""
    told = f"holds {shards} shard{'s' if shards > 1 else ''} (MP {shards}); {ranks} rank{'s' if ranks > 1 else ''} cut"
    (note,) = [line for line in err.splitlines() if "cut it anew while loading" in line]
    assert note.startswith("shardrun: ")
    assert f"{folder}: {told}" in note
    assert f"shardrun reshard {folder} " in note and f" --mp {ranks})" in note


@pytest.mark.parametrize(("shards", "ranks"), [(2, 1), (2, 3), (4, 1), (4, 2), (4, 3)])
def test_another_number_of_ranks_is_noted_and_gives_the_same_text(
    shards: int, ranks: int, cut: Cut, expected: list[list[int]], case: Path
) -> None:
    outcome = run(words(cut(shards), "--nproc_per_node", str(ranks)), case)
    assert_done(outcome)
    assert tokens(outcome.out) == expected
    assert_noted(outcome.err, cut(shards), shards, ranks)


def torchrun(ranks: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "launcher"]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("shards", "ranks"), [(2, 3), (4, 2)])
def test_torchrun_on_another_number_of_ranks_is_noted_once_and_gives_the_same_text(
    shards: int, ranks: int, cut: Cut, expected: list[list[int]], case: Path
) -> None:
    done = torchrun(ranks, case, *words(cut(shards)))
    assert done.returncode == 0, done.stderr
    assert tokens(done.stdout) == expected
    assert_noted(done.stderr, cut(shards), shards, ranks)


@pytest.mark.parametrize("ranks", [2, 3])
def test_files_that_were_cut_unevenly_run_on_as_many_ranks_and_on_others(
    ranks: int, cut: Cut, expected: list[list[int]], case: Path
) -> None:
    strict = ("--strict_mp",) if ranks == 3 else ()
    outcome = run(words(cut(3), "--nproc_per_node", str(ranks), *strict), case)
    assert_done(outcome)
    assert tokens(outcome.out) == expected
    assert ("cut it anew" in outcome.err) == (ranks != 3)


# Refused.


def test_strict_mp_refuses_another_number_of_ranks_with_both_commands(case: Path) -> None:
    outcome = run(words(DEMO, "--nproc_per_node", "3", "--strict_mp"), case)
    refusal = (
        f"{DEMO}: holds 2 shards (MP 2) but 3 ranks were started (world size 3); start 2: --nproc_per_node 2 "
        f"(torchrun: --nproc-per-node 2), or cut it anew: shardrun reshard {DEMO} {DEMO}-mp3 --mp 3, "
        "or drop --strict_mp"
    )
    assert_refused(outcome, [refusal])


def test_strict_mp_under_torchrun_is_refused_once(case: Path) -> None:
    done = torchrun(3, case, *words(DEMO, "--strict_mp"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("shardrun: error:") == 1
    assert done.stderr.count("holds 2 shards (MP 2) but 3 ranks were started (world size 3); start 2") == 1


def test_strict_mp_in_a_job_file_is_refused_by_its_own_numbers(case: Path) -> None:
    (case / "job.yaml").write_text(
        f"model:\n  ckpt_dir: {DEMO}\ngeneration:\n  prompts: [a]\nparallel:\n  nproc_per_node: 1\n  strict_mp: true\n"
    )
    assert_refused(run(["run", "job.yaml"], case), ["2 shards", "1 rank was started", "drop --strict_mp"])


@pytest.mark.parametrize("flags", [(), ("--strict_mp",)], ids=["any-mp", "strict-mp"])
def test_more_ranks_than_heads_are_refused_before_a_process_is_started(flags: tuple[str, ...], case: Path) -> None:
    outcome = run(words(DEMO, "--nproc_per_node", "9", *flags), case)
    assert_refused(outcome, ["cannot cut 8 heads over 9 ranks; choose an MP of 8 or fewer"])


def test_more_shards_than_heads_are_refused_before_anything_is_written(case: Path) -> None:
    outcome = run(["reshard", str(DEMO), "dst", "--mp", "9"], case)
    assert_refused(outcome, ["cannot cut 8 heads over 9 ranks; choose an MP of 8 or fewer"], 10.0, alone=True)
    assert sorted(path.name for path in case.iterdir()) == ["tmp"]


def test_an_uneven_folder_without_its_list_is_refused_rather_than_guessed(cut: Cut, case: Path) -> None:
    folder = case / "ckpt"
    folder.mkdir()
    for path in cut(3).iterdir():
        if path.name != "shards.json":
            (folder / path.name).symlink_to(path)
    outcome: Outcome = run(complete("ckpt", "--nproc_per_node", "3"), case)
    assert_refused(outcome, ["ckpt", "cut unevenly", "only shards.json could describe"])
