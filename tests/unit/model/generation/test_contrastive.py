"""Contrastive search on tiny random models, against the paper's formula written out; and what is ours alone."""

import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from model.generation.contrastive import search_contrastive
from model.generation.decoder import Decoder
from model.generation.generate import Generation
from model.generation.settings import Event, Settings
from model.tokenizers.base import Tokenizer
from parallel import Mesh
from tests.hugging_face import TINY, save_llama
from tests.searches import load, one_thread, plain_contrastive, room_of, searched  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = TINY["vocab_size"]
PROMPTS = [[7, 3, 21, 9, 30], [1], [12, 5, 5]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_llama(folder, num_key_value_heads=2)
    return folder


@cache
def hugging_face(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder).eval()


@torch.inference_mode()
def check(folder: Path, prompts: list[list[int]], settings: Settings) -> None:
    """A prompt in a batch is continued as alone."""
    found = searched(folder, prompts, settings)
    for prompt, one in zip(prompts, found, strict=True):
        wanted = plain_contrastive(hugging_face(folder), prompt, settings)
        assert (one.tokens, one.finish_reason) == (wanted.tokens, wanted.finish_reason), (prompt, settings)


def check_at_random(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    settings = Settings(
        penalty_alpha=rng.choice([0.1, 0.3, 0.6, 0.9, 1.0]),
        top_k=rng.choice([2, 4, 8]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        eos_ids=frozenset(rng.sample(range(WORDS), rng.choice([0, 1, 3]))),
        max_gen_len=rng.randint(1, 16),
        max_seq_len=rng.choice([10, 40]),
    )
    prompts = [[rng.randrange(WORDS) for _ in range(rng.randint(1, 10))] for _ in range(rng.randint(1, 4))]
    check(folder, prompts, settings)


@pytest.mark.parametrize("seed", range(10))
def test_a_batch_has_the_tokens_that_the_papers_formula_gives_each_prompt(folder: Path, seed: int) -> None:
    check_at_random(folder, seed)


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(10, 200))
def test_many_more_batches_have_the_tokens_of_the_papers_formula(folder: Path, seed: int) -> None:
    check_at_random(folder, seed)


def test_more_candidates_than_there_are_tokens_are_all_of_them(folder: Path) -> None:
    wanted = Settings(penalty_alpha=0.6, top_k=WORDS, max_gen_len=6, max_seq_len=64)
    more = Settings(penalty_alpha=0.6, top_k=WORDS + 9, max_gen_len=6, max_seq_len=64)
    assert searched(folder, PROMPTS, more) == searched(folder, PROMPTS, wanted)
    check(folder, PROMPTS, wanted)


def test_hardly_a_penalty_is_greedy_decoding(folder: Path) -> None:
    hardly = Settings(penalty_alpha=1e-9, top_k=4, max_gen_len=12, max_seq_len=64)
    greedy = Settings(temperature=0, max_gen_len=12, max_seq_len=64)
    assert searched(folder, PROMPTS, hardly) == searched(folder, PROMPTS, greedy)


def test_log_probabilities_are_the_models_own(folder: Path) -> None:
    settings = Settings(
        penalty_alpha=0.6, top_k=4, max_gen_len=9, max_seq_len=64, logprobs=True, repetition_penalty=1.5
    )
    for prompt, one in zip(PROMPTS, searched(folder, PROMPTS, settings), strict=True):
        with torch.inference_mode():
            known_TV = hugging_face(folder)(torch.tensor([[*prompt, *one.tokens]])).logits[0].log_softmax(-1)
        own = known_TV[range(len(prompt) - 1, len(known_TV) - 1), one.tokens].tolist()
        # Two implementations in float32, logits of some tens.
        assert one.logprobs == pytest.approx(own, abs=1e-4)


def test_an_answer_ends_with_the_token_that_completes_a_stop_string(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_llama(tmp_path, vocab_size=tokenizer.n_words, num_key_value_heads=2)
    shutil.copy(tokenizer.path, tmp_path)
    free = Settings(penalty_alpha=0.6, top_k=4, max_gen_len=20, max_seq_len=64)
    whole = searched(tmp_path, PROMPTS, free)
    # A text of two tokens in the first answer.
    stop = next(
        text
        for first in range(3, 20)
        if (text := tokenizer.decode(whole[0].tokens[first : first + 2])).isascii() and len(text) > 1
    )
    stopped = Settings(penalty_alpha=0.6, top_k=4, max_gen_len=20, max_seq_len=64, stop=(stop,))
    for one, free_one in zip(searched(tmp_path, PROMPTS, stopped), whole, strict=True):
        texts = [tokenizer.decode(free_one.tokens[:count]) for count in range(1, 21)]
        ends = [count for count, text in enumerate(texts, 1) if stop in text]
        assert one.tokens == free_one.tokens[: ends[0] if ends else 20]
        assert one.finish_reason == ("stop" if ends else "length")


@torch.inference_mode()
def test_an_interrupted_search_ends_all_answers_where_they_are(folder: Path) -> None:
    settings = Settings(penalty_alpha=0.6, top_k=4, max_gen_len=9, max_seq_len=64)
    decoder = Decoder(load(folder, Mesh()), PROMPTS, settings, range(3))
    events = list(search_contrastive(decoder, decoder.prefill(), None, lambda: decoder.step >= 4))
    whole = searched(folder, PROMPTS, settings)
    assert events[-3:] == [Event(row, None, None, "stop") for row in range(3)]
    for row, one in enumerate(whole):
        assert [event.token for event in events[:-3] if event.row == row] == one.tokens[:4]


def test_room_is_counted_for_the_candidates_and_for_what_they_are_compared_with(folder: Path) -> None:
    """Beside the KV cache rank 0 keeps a float32 vector of the model's width for each place."""
    settings = Settings(penalty_alpha=0.6, top_k=4, max_gen_len=9, max_seq_len=64)
    generation = Generation(load(folder, Mesh()), PROMPTS, settings, range(3))
    places = max(len(prompt) + room_of(prompt, settings) for prompt in PROMPTS) + settings.top_k
    keys_and_values = 2 * TINY["num_hidden_layers"] * 2 * (TINY["hidden_size"] // TINY["num_attention_heads"])
    assert generation.cache_bytes == len(PROMPTS) * places * 4 * (keys_and_values + TINY["hidden_size"])
