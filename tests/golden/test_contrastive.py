"""Contrastive search on two trained models at MP 1 and 2: the tokens that the paper's formula gives."""

import itertools
from functools import cache

import pytest
import torch

from model.generation.settings import Settings
from tests.distributed.threads import run_as_threads
from tests.golden.conftest import END_OF_STORY, MODELS, llama_of
from tests.golden.test_one_process import as_hugging_face
from tests.searches import plain_contrastive, searched

TEXTS = ("", "Once upon a time", "Lily saw a big dog and")
hugging_face = cache(as_hugging_face)


def check(name: str, mps: tuple[int, ...], settings: Settings) -> None:
    prompts = [llama_of(name).encode_prompt(text, 0) for text in TEXTS]
    with torch.inference_mode():
        wanted = [plain_contrastive(hugging_face(name), prompt, settings) for prompt in prompts]
    # Words that come back are what the search is against.
    assert all(len(set(one.tokens)) > len(one.tokens) // 2 for one in wanted)
    for mp in mps:
        for found in run_as_threads(mp, lambda mesh: searched(MODELS / name, prompts, settings, mesh)):
            assert [(one.tokens, one.finish_reason) for one in found] == [
                (one.tokens, one.finish_reason) for one in wanted
            ]


@pytest.mark.parametrize(
    ("name", "alpha", "top_k", "penalty", "tokens"),
    [("stories260K", 0.3, 8, 1.0, 24), ("stories260K", 0.6, 4, 1.2, 32), ("stories15M", 0.6, 4, 1.0, 10)],
)
def test_a_batch_has_the_tokens_of_the_papers_formula(
    name: str, alpha: float, top_k: int, penalty: float, tokens: int
) -> None:
    settings = Settings(
        penalty_alpha=alpha,
        top_k=top_k,
        repetition_penalty=penalty,
        max_gen_len=tokens,
        max_seq_len=256,
        eos_ids=frozenset({END_OF_STORY}),
    )
    check(name, (1, 2), settings)


@pytest.mark.drill
@pytest.mark.parametrize(
    ("name", "alpha", "top_k", "penalty"),
    list(itertools.product(("stories260K", "stories15M"), (0.3, 0.6), (4, 8), (1.0, 1.2))),
)
def test_longer_answers_have_the_tokens_of_the_papers_formula(
    name: str, alpha: float, top_k: int, penalty: float
) -> None:
    dot = llama_of(name).text_tokenizer().encode("a.", bos=False, eos=False)[-1]
    for ends in ({END_OF_STORY}, {END_OF_STORY, dot}):
        settings = Settings(
            penalty_alpha=alpha,
            top_k=top_k,
            repetition_penalty=penalty,
            max_gen_len=80 if name == "stories260K" else 40,
            max_seq_len=256,
            eos_ids=frozenset(ends),
        )
        check(name, (1, 2, 4) if name == "stories260K" else (1, 2), settings)
