"""`score` by the real command: one process, two ranks over gloo, files, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import Outcome, Running, assert_done, assert_refused

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
TEXT = "Once upon a time, there was a fox named Zoë. She ran to the river every day.\nThe river was wide.\n"
FLAGS = ["--dtype", "float32", "--device", "cpu", "--max_seq_len", "16", "--stride", "5", "--max_batch_size", "3"]


def score(folder: Path, text: str, *flags: str) -> Outcome:
    with Running(["score", "--ckpt_dir", str(DEMO), "--text", text, *flags], folder) as running:
        return running.end()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process writes of the text in a file."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "story.txt").write_text(TEXT, encoding="utf-8")
    outcome = score(folder, "@story.txt", *FLAGS, "--output", "score.jsonl")
    assert_done(outcome)
    assert outcome.out == ""
    (line,) = (folder / "score.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_score_has_the_fields_of_an_answer_and_its_own(alone: dict[str, Any]) -> None:
    assert list(alone) == [
        *("index", "prompt", "generation", "prompt_tokens", "tokens", "logprobs", "finish_reason"),
        *("perplexity", "nats_per_token", "bits_per_byte", "scored_tokens", "window_tokens", "stride"),
    ]
    known, tokens = alone["logprobs"][1:], alone["prompt_tokens"]
    assert (alone["index"], alone["prompt"], alone["generation"], alone["tokens"]) == (0, TEXT, "", [])
    assert (alone["finish_reason"], alone["window_tokens"], alone["stride"]) == ("length", 16, 5)
    assert tokens[0] == 1
    assert len(tokens) > 24
    assert alone["logprobs"][0] is None
    assert alone["scored_tokens"] == len(known) == len(tokens) - 1
    nats = -math.fsum(known)
    assert alone["nats_per_token"] == pytest.approx(nats / len(known), rel=1e-12)
    assert alone["perplexity"] == pytest.approx(math.exp(nats / len(known)), rel=1e-12)
    # Bytes, not characters: one letter has two.
    assert alone["bits_per_byte"] == pytest.approx(nats / math.log(2) / (len(TEXT) + 1), rel=1e-12)


def test_two_ranks_print_the_same_numbers_as_text(alone: dict[str, Any], tmp_path: Path) -> None:
    outcome = score(tmp_path, TEXT, *FLAGS, "--nproc_per_node", "2")
    assert_done(outcome, ["2 ranks: backend gloo"])
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert list(lines) == ["perplexity", "nats", "tokens", "bytes", "windows"]
    # Six digits are shown, and sums over ranks are in another order (float32).
    nats, near = alone["nats_per_token"], 1e-5
    assert float(lines["perplexity"]) == pytest.approx(alone["perplexity"], rel=near)
    shown, bits = lines["nats"].removesuffix(" bits)").split(" a token (")
    assert float(shown) == pytest.approx(nats, rel=near)
    assert float(bits) == pytest.approx(nats / math.log(2), rel=near)
    assert lines["tokens"].startswith(f"{alone['scored_tokens']} scored")
    text_bytes, bits = lines["bytes"].removesuffix(" bits each").split(" of text, ")
    assert int(text_bytes) == len(TEXT) + 1
    assert float(bits) == pytest.approx(alone["bits_per_byte"], rel=near)
    windows = 1 + math.ceil((len(alone["prompt_tokens"]) - 16) / 5)
    assert lines["windows"] == f"{windows} of 16 tokens, each 5 behind the one before"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stride", "512"], "stride is 512 but max_seq_len is 512; "),
        (["--max_seq_len", "1"], "max_seq_len is 1; "),
    ],
)
def test_windows_that_cannot_be_are_refused_before_anything_is_loaded(
    flags: list[str], said: str, tmp_path: Path
) -> None:
    assert_refused(score(tmp_path, TEXT, *flags), [said])
