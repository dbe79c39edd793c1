"""Scores of trained models against transformers', window by window, at MP 1 and 2 and in any batch.

The demo model stands in the repository, so it is always scored; the others where they are.
"""

import gzip
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import Llama
from model.generation.scoring import Score, Scoring
from model.tokenizers.opening import open_tokenizer
from tests.distributed.threads import run_as_threads
from tests.golden.conftest import MODELS, REPOSITORY, json_lines, run
from tests.golden.test_one_process import as_hugging_face
from tests.searches import load

FOLDERS = {
    "demo": REPOSITORY / "configs" / "demo",
    "stories260K": MODELS / "stories260K",
    "stories15M": MODELS / "stories15M",
}
STORIES = MODELS.parent / "text" / "stories.txt.gz"
# As in test_one_process: float32 sums in another order give log-probabilities that differ by 3e-5 at the worst.
NEAR = 1e-4
# Errors of single tokens are as often too much as too little, so the mean of a hundred is nearer than each.
NEAR_PERPLEXITY = 1e-5
TEXT = """Once upon a time, a little mouse lived in an old shoe by the river. Every day she swept the shoe and put
fresh grass on the floor. One day it rained and rained, and the water came up to the shoe.
"Help!" said the mouse. "My house is swimming away!"
A big brown duck heard her. "Do not be afraid," said the duck. "I will push you to the land." The duck swam behind
the shoe and pushed and pushed, until it stood on dry sand again.
The mouse was so happy that she danced. "Thank you," she said. "What can I do for you?" The duck thought about it.
"I am tired," he said. "May I sleep in your shoe tonight?" So they were both warm and dry, and from that day on
they were friends.
"""


@pytest.fixture(scope="session", autouse=True)
def trained_models() -> Iterator[None]:
    """In place of the folder's, which skips the demo too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    found = FOLDERS[request.param]
    if not (found / "params.json").is_file():
        pytest.skip(f"there is no {found}; it lies beside the repository, not in it")
    return found


@cache
def tokens_of(folder: Path) -> list[int]:
    return open_tokenizer(folder / "tokenizer.model").encode(TEXT, bos=True, eos=False)


@cache
def hugging_face(folder: Path) -> Any:
    return as_hugging_face(str(folder))


@torch.inference_mode()
def wanted(folder: Path, max_seq_len: int, stride: int) -> list[float]:
    """By transformers, each window alone; of each the tokens that no window before it has told of."""
    tokens, found = tokens_of(folder), list[float]()
    for start in range(0, len(tokens), stride):
        window = tokens[start : start + max_seq_len]
        logits_TV: Tensor = hugging_face(folder)(torch.tensor([window])).logits[0, :-1]
        values = logits_TV.log_softmax(-1).gather(-1, torch.tensor(window[1:]).unsqueeze(-1)).squeeze(-1).tolist()
        found += values[len(found) - start :]
        if start + max_seq_len >= len(tokens):
            break
    return found


def scores(folder: Path, mp: int, max_seq_len: int, batch_size: int, stride: int | None) -> list[Score]:
    """What each of `mp` ranks finds, in float32."""

    def score(mesh: Any) -> Score:
        return Scoring(load(folder, mesh), tokens_of(folder), max_seq_len, batch_size, stride).run()

    return run_as_threads(mp, score)


@pytest.mark.parametrize("mp", [1, 2])
def test_logprobs_of_every_window_equal_those_of_transformers(folder: Path, mp: int) -> None:
    assert len(tokens_of(folder)) > 150
    for max_seq_len, batch_size, stride in ((512, 8, None), (64, 3, None), (40, 8, 39)):
        found = scores(folder, mp, max_seq_len, batch_size, stride)
        for score in found:
            assert score.logprobs == found[0].logprobs
        assert len(found[0].logprobs) == len(tokens_of(folder)) - 1
        assert found[0].logprobs == pytest.approx(wanted(folder, max_seq_len, found[0].stride), abs=NEAR)


def test_the_perplexity_is_the_same_in_any_batch_and_at_any_mp(folder: Path) -> None:
    expected = math.exp(-math.fsum(wanted(folder, 64, 32)) / (len(tokens_of(folder)) - 1))
    for mp, batch_size in ((1, 1), (1, 8), (2, 2), (2, 8)):
        for score in scores(folder, mp, 64, batch_size, None):
            assert score.perplexity == pytest.approx(expected, rel=NEAR_PERPLEXITY)


def test_a_text_shorter_than_the_window_is_scored_as_an_echoed_prompt(folder: Path) -> None:
    llama = Llama.build(str(folder), None, 512, 8, dtype="float32", device="cpu")
    torch.set_num_threads(1)
    _, known = llama.generate([tokens_of(folder)], 1, 0, logprobs=True, echo=True)
    assert known is not None
    for asked in (TEXT, tokens_of(folder)):
        score = llama.score(asked)
        assert score.tokens == tokens_of(folder)
        # The same passes over the same numbers.
        assert score.logprobs == known[0][1 : len(score.tokens)]
        assert score.windows == 1
    # A better story than any other order of its words, and no oracle.
    assert 1 < score.perplexity < 200


@pytest.mark.drill
def test_a_long_text_has_the_same_perplexity_at_mp_1_and_2_by_the_real_command(tmp_path: Path) -> None:
    if not STORIES.is_file():
        pytest.skip(f"there is no {STORIES}")
    with gzip.open(STORIES, "rt", encoding="utf-8") as file:
        text = file.read(50_000)
    (tmp_path / "stories.txt").write_text(text, encoding="utf-8")
    words = ["score", "--ckpt_dir", FOLDERS["stories15M"], "--text", f"@{tmp_path / 'stories.txt'}", "--json"]
    words += ["--max_seq_len", 256, "--dtype", "float32", "--device", "cpu"]
    alone, cut = (json_lines(run("-m", "launcher", *words, "--nproc_per_node", mp))[0] for mp in (1, 2))
    assert alone["scored_tokens"] == cut["scored_tokens"] > 10_000
    assert cut["logprobs"][1:] == pytest.approx(alone["logprobs"][1:], abs=NEAR)
    assert cut["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)
    # The text was drawn from this very model.
    assert 2 < alone["perplexity"] < 6
