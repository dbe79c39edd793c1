"""`--quantize` by the real command: what it costs in perplexity, at MP 1 and 2, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import WHILE_LOADING_S, Outcome, Running, assert_done, assert_refused, run
from tests.end_to_end.test_memory import LARGE, LARGE_BYTES, LARGE_JSON
from tests.sparse_shards import write_sparse_folder

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
TEXT = "Once upon a time, there was a fox. She ran to the river every day. The river was wide."
FLAGS = ["--dtype", "float32", "--device", "cpu", "--max_seq_len", "64"]


def score(folder: Path, *flags: str, ckpt_dir: Path = DEMO) -> Outcome:
    with Running(["score", "--ckpt_dir", str(ckpt_dir), "--text", TEXT, *FLAGS, *flags], folder) as running:
        return running.end()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process says of the demo model in int8, beside the plain one."""
    outcome = score(tmp_path_factory.mktemp("alone"), "--quantize", "int8", "--json")
    assert_done(outcome, ["weights in int8", "int8: ", " GB of weights became "])
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_a_score_tells_what_quantising_costs(alone: dict[str, Any]) -> None:
    assert list(alone)[-3:] == ["quantize", "perplexity_plain", "perplexity_ratio"]
    assert alone["quantize"] == "int8"
    assert alone["perplexity_ratio"] == pytest.approx(alone["perplexity"] / alone["perplexity_plain"], rel=1e-12)
    # Eight bits of a trained model lose little, and something.
    assert 1e-6 < abs(alone["perplexity_ratio"] - 1) < 0.02


def test_two_ranks_say_the_same_as_text(alone: dict[str, Any], tmp_path: Path) -> None:
    outcome = score(tmp_path, "--quantize", "int8", "--nproc_per_node", "2")
    assert_done(outcome)
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    # Six digits are shown, and sums over ranks are in another order (float32).
    assert float(lines["perplexity"]) == pytest.approx(alone["perplexity"], rel=1e-5)
    plain, ratio = lines["plain"].removesuffix(" times that").split(" with the weights as they are: int8 makes it ")
    assert float(plain) == pytest.approx(alone["perplexity_plain"], rel=1e-5)
    assert float(ratio) == pytest.approx(alone["perplexity_ratio"], rel=2e-5)


def test_without_the_comparison_only_the_quantised_weights_are_loaded(alone: dict[str, Any], tmp_path: Path) -> None:
    outcome = score(tmp_path, "--quantize", "int8", "--compare_plain", "false", "--json")
    assert_done(outcome)
    assert outcome.err.count("shardrun: loaded ") == 1
    assert json.loads(outcome.out) == alone | {"perplexity_plain": None, "perplexity_ratio": None}


def test_plain_weights_that_do_not_fit_are_refused_with_the_way_on(tokenizer: bytes, case: Path) -> None:
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > LARGE_BYTES:
        pytest.skip("this machine has more memory than the example takes")
    folder = write_sparse_folder(case / "large", LARGE, LARGE_JSON)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    outcome = score(case, "--quantize", "int4", ckpt_dir=folder)
    says = ["the plain weights, which are to be compared with (--compare_plain false: score without them): ", "GB) are"]
    assert_refused(outcome, says, WHILE_LOADING_S, alone=False)


def test_exact_and_quantize_together_are_refused(case: Path) -> None:
    words = ["--ckpt_dir", str(DEMO), "--prompts", '["Once"]', "--exact", "--device", "cpu"]
    outcome = run(["complete", *words, "--quantize", "int8"], case)
    assert_refused(outcome, ["--exact and --quantize int8 do not go together: "], WHILE_LOADING_S, alone=False)


def test_a_plan_counts_the_bytes_of_whole_numbers(case: Path) -> None:
    # As Llama 2 7B: 6.48 billion numbers in its layers, 131 million each in output and tok_embeddings.
    params = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-5, "vocab_size": 32000}
    (case / "params.json").write_text(json.dumps(params))
    layers, vocabulary, norms = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32000 * 4096, 2 * 65 * 4096
    rows = 32 * (5 * 4096 + 2 * 11008)
    wanted = {
        "none": 2 * (layers + 2 * vocabulary) + norms,
        # A float32 for each row.
        "int8": layers + 4 * rows + vocabulary + 4 * 32000 + 2 * vocabulary + norms,
        # 36 bytes for each group of 64; output is int8.
        "int4": layers * 36 // 64 + vocabulary + 4 * 32000 + 2 * vocabulary + norms,
    }
    for quantize, nbytes in wanted.items():
        outcome = run(
            ["plan", "params.json", "--quantize", quantize, "--dtype", "bfloat16", "--gpu_memory", "80", "--json"], case
        )
        assert_done(outcome)
        found = json.loads(outcome.out)
        assert (found["quantize"], found["ranks"][0]["weights_bytes"]) == (quantize, nbytes)
