"""Greedy decoding, its log-probabilities and drawn tokens on trained models: transformers' at MP 1, 2 and 4."""

from collections.abc import Sequence
from functools import cache

import pytest

from model.generation.settings import Settings
from tests.distributed.threads import run_as_threads
from tests.golden.conftest import END_OF_STORY, MODELS, llama_of
from tests.golden.test_one_process import as_hugging_face
from tests.searches import greedy_by_transformers, searched

TEXTS = ("", "Once upon a time", "Lily saw a big")
TOKENS = 60
# float32 sums in another order, and sums over ranks in one more.
NEAR = 1e-4
hugging_face = cache(as_hugging_face)


def prompts_of(name: str) -> list[list[int]]:
    return [llama_of(name).encode_prompt(text, index) for index, text in enumerate(TEXTS)]


@cache
def greedy(name: str, prompt: tuple[int, ...], penalty: float) -> tuple[list[int], list[float]]:
    settings = Settings(
        max_gen_len=TOKENS,
        max_seq_len=256,
        temperature=0,
        repetition_penalty=penalty,
        eos_ids=frozenset({END_OF_STORY}),
    )
    return greedy_by_transformers(hugging_face(name), prompt, settings)


@pytest.mark.parametrize(
    ("name", "mp"), [("stories260K", 1), ("stories260K", 2), ("stories260K", 4), ("stories15M", 1), ("stories15M", 2)]
)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_and_logprobs_with_and_without_a_repetition_penalty_are_transformers(
    name: str, mp: int, penalty: float
) -> None:
    prompts = prompts_of(name)
    settings = Settings(
        max_gen_len=TOKENS,
        max_seq_len=256,
        temperature=0,
        repetition_penalty=penalty,
        eos_ids=frozenset({END_OF_STORY}),
        logprobs=True,
    )
    for answers in run_as_threads(mp, lambda mesh: searched(MODELS / name, prompts, settings, mesh)):
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens, known = greedy(name, tuple(prompt), penalty)
            assert answer.tokens == tokens
            assert answer.logprobs == pytest.approx(known, abs=NEAR)


def drawn(name: str, mp: int, settings: Settings) -> Sequence[list[list[int]]]:
    """The tokens that each rank has."""
    prompts = prompts_of(name)
    return run_as_threads(mp, lambda mesh: [one.tokens for one in searched(MODELS / name, prompts, settings, mesh)])


def test_several_draws_of_a_prompt_differ_and_are_the_same_at_any_mp() -> None:
    settings = Settings(
        max_gen_len=30,
        max_seq_len=256,
        temperature=0.9,
        top_k=50,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.1,
        num_return_sequences=3,
        seed=5,
    )
    (alone,) = drawn("stories260K", 1, settings)
    assert len({tuple(tokens) for tokens in alone}) == len(alone) == 9
    assert list(drawn("stories260K", 2, settings)) == [alone] * 2
    assert list(drawn("stories260K", 4, settings)) == [alone] * 4
    # The first draw of each prompt is the one that it has alone.
    single = Settings(**{**{name: getattr(settings, name) for name in settings.__slots__}, "num_return_sequences": 1})
    assert drawn("stories260K", 1, single)[0] == alone[::3]


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-6}])
def test_what_leaves_one_token_is_greedy_decoding(how: dict[str, float]) -> None:
    asked = {"max_gen_len": 20, "max_seq_len": 256, "temperature": 1.5, **how}
    (tokens,) = drawn("stories260K", 2, Settings(**asked))[:1]  # type: ignore[arg-type]
    expected = [greedy("stories260K", tuple(prompt), 1.0)[0][:20] for prompt in prompts_of("stories260K")]
    assert tokens == expected
