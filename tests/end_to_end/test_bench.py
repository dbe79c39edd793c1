"""`bench` as a user starts it, on a model of a few kilobytes: keys, rates that fit their seconds, and refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import TINY
from tests.end_to_end.command import CopyOf, Running, assert_done, assert_refused, run

SHORT = ["--prompt_tokens", "8", "--new_tokens", "6", "--repeats", "2"]
ROW = {"mp", "batch_size", "prompt_tokens", "new_tokens", "prefill_tokens_per_s", "decode_tokens_per_s"}
# Two starts of ranks, on a busy machine.
TWO_SIZES_S = 60.0


def write_params(folder: Path) -> None:
    (folder / "params.json").write_text(json.dumps({**TINY.params(), "vocab_size": 64}))


def assert_consistent(row: dict[str, Any]) -> None:
    """Rates are positive, and of the seconds beside them."""
    batch, steps = row["batch_size"], row["new_tokens"] - 1
    assert row["prefill_tokens_per_s"] * row["first_token_s"] == pytest.approx(batch * row["prompt_tokens"])
    assert row["decode_tokens_per_s"] * row["decode_step_s"] == pytest.approx(batch)
    lowest, highest = row["decode_tokens_per_s_lowest"], row["decode_tokens_per_s_highest"]
    assert 0 < lowest <= row["decode_tokens_per_s"] <= highest
    # On a busy machine single steps take many times the usual one.
    assert steps * batch / highest / 5 < row["decode_s"]
    assert row["step_bytes"] > 0
    assert row["prefill_share_of_peak_flops"] > 0
    assert row["decode_share_of_bandwidth"] > 0


def test_sizes_alone_are_measured_at_two_mp_sizes_with_random_weights(case: Path) -> None:
    write_params(case)
    words = ["bench", "params.json", "--mp", "2,1", *SHORT, "--device", "cpu", "--dtype", "float32", "--json"]
    with Running([*words, "--plot", "rates.png"], case) as running:
        outcome = running.end(TWO_SIZES_S)
    assert_done(outcome, ["MP 2 (size 1 of 2)"])
    assert outcome.out.count("\n") == 1
    found = json.loads(outcome.out)
    assert found["load_s"] > 0
    assert all(set(row) >= ROW for row in found["results"])
    assert [(row["mp"], row["batch_size"]) for row in found["results"]] == [(2, 1), (2, 8), (1, 1), (1, 8)]
    for row in found["results"]:
        assert (row["prompt_tokens"], row["new_tokens"]) == (8, 6)
        assert_consistent(row)
    assert (found["random_weights"], found["dtype"], found["quantize"]) == (True, "float32", "none")
    assert [(size["mp"], size["load_bytes"], len(size["memory"])) for size in found["sizes"]] == [(2, 0, 2), (1, 0, 1)]
    assert found["machine"]["torch"] == torch.__version__
    assert (case / "rates.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert list((case / "tmp").iterdir()) == []


def test_a_checkpoint_without_a_tokenizer_is_measured_as_a_table(case: Path, copy_of: CopyOf) -> None:
    folder = copy_of(2)
    (folder / "tokenizer.model").unlink()
    outcome = run(["bench", "ckpt", "--max_batch_size", "1", "--quantize", "int8", "--device", "cpu", *SHORT], case)
    assert_done(outcome)
    lines = outcome.out.splitlines()
    assert lines[0].startswith("ckpt: ")
    assert lines[0].endswith("(from files), dtype float32, weights in int8; 8 + 6 tokens a row")
    assert sum(line.split()[:2] == ["1", "1"] for line in lines) == 1
    assert any(line.startswith("  loaded in ") and line.count(" GB/s)") == 1 for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: does not exist"),
        (["params.json", "--mp", "1,8"], "cannot cut 4 heads over 8 ranks"),
        (["params.json", "--plot", "nowhere/rates.png"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(words: list[str], said: str, case: Path) -> None:
    write_params(case)
    assert_refused(run(["bench", *words], case), [said])


@pytest.mark.drill
def test_torchruns_ranks_are_measured_as_they_are(case: Path) -> None:
    write_params(case)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "launcher", "bench"]
    done = subprocess.run(
        [sys.executable, *torchrun, "params.json", "--device", "cpu", "--json", *SHORT],
        cwd=case,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(row["mp"], row["batch_size"]) for row in found["results"]] == [(2, 1), (2, 8)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_gpu_is_measured_beside_its_own_limits(quantize: str, case: Path) -> None:
    (case / "params.json").write_text(json.dumps({**TINY.params(), "dim": 512, "vocab_size": 64}))
    words = ["bench", "params.json", "--device", "cuda", "--dtype", "bfloat16", "--quantize", quantize, "--json"]
    outcome = run([*words, *SHORT], case)
    assert_done(outcome)
    found = json.loads(outcome.out)
    assert found["machine"]["device"] == torch.cuda.get_device_name(0)
    for row in found["results"]:
        assert_consistent(row)
    assert all(memory["peak_bytes"] > 0 for size in found["sizes"] for memory in size["memory"])
