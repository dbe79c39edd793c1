"""The model of this repository against transformers at MP 1, 2 and 4: greedy decoding, and beam search with scores."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from model.generation.settings import Settings
from model.tokenizers.opening import open_tokenizer
from tests.distributed.threads import run_as_threads
from tests.golden.conftest import REPOSITORY
from tests.golden.test_one_process import as_hugging_face
from tests.searches import greedy_by_transformers, require_beams, searched, transformers_beams

DEMO = REPOSITORY / "configs" / "demo"
END = 2
# float32 sums in another order, and sums over ranks in one more.
NEAR = 1e-4


@pytest.fixture(scope="module", autouse=True)
def trained_models() -> Iterator[None]:
    """This model stands in the repository: nothing is skipped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def hugging_face() -> Any:
    return as_hugging_face(str(DEMO))


@cache
def prompts() -> list[list[int]]:
    encode = open_tokenizer(DEMO / "tokenizer.model").encode
    return [encode(text, bos=True, eos=False) for text in ("", "Once upon a time", "Lily saw a big")]


@pytest.mark.parametrize("mp", [1, 2, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_and_logprobs_are_transformers(penalty: float, mp: int) -> None:
    settings = Settings(
        max_gen_len=30,
        max_seq_len=256,
        temperature=0,
        repetition_penalty=penalty,
        eos_ids=frozenset({END}),
        logprobs=True,
    )
    wanted = [greedy_by_transformers(hugging_face(), prompt, settings) for prompt in prompts()]
    for answers in run_as_threads(mp, lambda mesh: searched(DEMO, prompts(), settings, mesh)):
        for (tokens, known), answer in zip(wanted, answers, strict=True):
            assert answer.tokens == tokens
            assert answer.logprobs == pytest.approx(known, abs=NEAR)


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 4, "num_return_sequences": 4},
        {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 0.0},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_beams_and_their_scores_are_transformers(how: dict[str, Any]) -> None:
    encode = open_tokenizer(DEMO / "tokenizer.model").encode
    ends = {encode("a" + text, bos=False, eos=False)[-1] for text in ".,"}
    settings = Settings(max_gen_len=20, max_seq_len=256, eos_ids=frozenset({END, *ends}), **how)
    known = {tuple(prompt): transformers_beams(hugging_face(), prompt, settings) for prompt in prompts()}
    for mp in (1, 2, 4):
        for found in run_as_threads(mp, lambda mesh: searched(DEMO, prompts(), settings, mesh)):
            require_beams(found, prompts(), settings, lambda prompt: known[tuple(prompt)])
