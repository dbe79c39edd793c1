"""`verify` by the real command: sizes that agree, ranks that fail, and sizes refused before any rank starts."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import flip_bit
from tests.end_to_end.command import CopyOf, Outcome, Running, assert_done, assert_refused

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
PROMPTS = ["Once upon a time", "", "One day, a cat saw a"]
# Two starts of ranks, on a busy machine.
TWO_SIZES_S = 60.0


def verify(folder: Path, *arguments: str) -> Outcome:
    with Running(["verify", *arguments, "--device", "cpu"], folder) as running:
        return running.end(TWO_SIZES_S)


def test_sizes_that_agree_are_told_so_and_nothing_is_left(tmp_path: Path) -> None:
    asked = ["--prompts", json.dumps(PROMPTS), "--dtype", "float32", "--max_gen_len", "8"]
    outcome = verify(tmp_path, str(DEMO), "--mp", "2,1", *asked)
    assert_done(outcome)
    shown = outcome.out.splitlines()
    assert shown[0] == f"{DEMO}: 3 prompts, 24 tokens at MP 2, dtype float32"
    assert shown[1].startswith("MP 1: all tokens agree; log-probabilities of equal tokens differ by ")
    # Sums over ranks are in another order.
    assert 0 <= float(shown[1].split()[-3]) < 1e-4
    assert shown[2:] == ["MP 2, 1 agree"]
    # A line a size; of what the ranks say, only how far they are.
    said = [line for line in outcome.err.splitlines() if not line.endswith(" s left")]
    sizes = ["shardrun: MP 2: 3 prompts (size 1 of 2)", "shardrun: MP 1: 3 prompts (size 2 of 2)"]
    assert [line for line in said if not line.startswith("shardrun: note: MP 2 on a CPU with 1 core")] == sizes
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_exact_mode_agrees_to_the_bit_on_any_prompts(tmp_path: Path) -> None:
    outcome = verify(tmp_path, str(DEMO), "--mp", "1,2", "--exact", "--max_gen_len", "3", "--json")
    assert_done(outcome)
    assert outcome.out.count("\n") == 1
    found = json.loads(outcome.out)
    assert {name: found[name] for name in ("checkpoint", "agree", "exact", "dtype", "reference_mp")} == {
        "checkpoint": str(DEMO),
        "agree": True,
        "exact": True,
        "dtype": "auto",
        "reference_mp": 1,
    }
    assert found["prompts"] > 4
    # An end token ends an answer sooner.
    assert found["prompts"] < found["tokens"] <= 3 * found["prompts"]
    assert list(found["seconds"]) == ["1", "2"]
    (compared,) = found["compared"]
    assert compared == {
        "mp": 2,
        "agree": True,
        "same_tokens": found["tokens"],
        "largest_logprob_difference": 0.0,
        "differences": [],
    }


def test_a_size_whose_ranks_fail_ends_the_command_as_they_do(copy_of: CopyOf, case: Path) -> None:
    flip_bit(copy_of(2) / "consolidated.01.pth", 3)
    outcome = verify(case, "ckpt", "--mp", "2,1")
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "consolidated.01.pth" in outcome.errors[0]
    assert "size 2 of 2" not in outcome.err
    assert outcome.out == ""
    assert outcome.left == []
    assert list((case / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mp", "1,16"], "cannot cut 8 heads over 16 ranks; choose an MP of 8 or fewer"),
        (["--mp", "1,3", "--exact"], "choose an MP of 1, 2, 4 or 8"),
        (["--mp", "2,1,2"], "--mp holds 2 twice; give each size once"),
        (["--mp", "2"], "--mp holds 1 size; wanted two or more"),
        (["--mp", "0,1"], "--mp holds 0; wanted sizes of 1 or more"),
        (["--mp", "1,2", "--max_seq_len", "4"], "but max_seq_len is 4"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_rank_starts(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(verify(tmp_path, str(DEMO), *arguments), [said])
