"""Beam search on tiny random models, as transformers' finds it; and what is ours alone: batches, ends, the cache."""

import json
import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from model.cache import KVCache
from model.generation.beams import Beam, Board, End, search_beams
from model.generation.decoder import Decoder
from model.generation.generate import Generation
from model.generation.settings import Event, Settings
from model.hugging_face.tokenizer_files import tokenizer_files
from model.params import Params
from model.tokenizers.base import Tokenizer
from parallel import Mesh
from tests.hugging_face import TINY, save_llama
from tests.searches import gathered, load, one_thread, require_beams, searched, transformers_beams  # noqa: F401

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


def some_settings(seed: int) -> tuple[Settings, list[list[int]]]:
    """A search and a batch, both at random."""
    rng = random.Random(seed)
    beams = rng.choice([2, 3, 4, 5])
    settings = Settings(
        num_beams=beams,
        num_return_sequences=rng.randint(1, beams),
        length_penalty=rng.choice([0.0, 0.5, 1.0, 2.0, -1.0]),
        early_stopping=rng.choice([False, True, "never"]),
        repetition_penalty=rng.choice([1.0, 1.2, 0.8]),
        eos_ids=frozenset(rng.sample(range(WORDS), rng.choice([0, 1, 2, 3, 6]))),
        max_gen_len=rng.randint(1, 24),
        max_seq_len=rng.choice([8, 30, 64]),
    )
    return settings, [[rng.randrange(WORDS) for _ in range(rng.randint(1, 8))] for _ in range(rng.randint(1, 3))]


def check(folder: Path, seed: int) -> None:
    settings, prompts = some_settings(seed)
    model = hugging_face(folder)
    require_beams(
        searched(folder, prompts, settings),
        prompts,
        settings,
        lambda prompt: transformers_beams(model, prompt, settings),
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_has_the_sequences_and_scores_that_transformers_has_for_each_prompt(folder: Path, seed: int) -> None:
    check(folder, seed)


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(12, 400))
def test_many_more_batches_have_transformers_sequences_and_scores(folder: Path, seed: int) -> None:
    check(folder, seed)


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder with the tokenizer as a file of either kind."""
    folder = tmp_path_factory.mktemp("text")
    save_llama(folder, vocab_size=tokenizer.n_words, num_key_value_heads=2)
    shutil.copy(tokenizer.path, folder)
    for name, content in tokenizer_files(tokenizer.path, 2048).items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("stop", [("c",), ("b", "el"), tuple("abcdefghijklmnopqrstuvwxyz"), ("qq",)], ids=" ".join)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_stop_strings_complete_a_beam_as_in_transformers(
    with_text: Path, stop: tuple[str, ...], early_stopping: bool
) -> None:
    settings = Settings(
        num_beams=3,
        num_return_sequences=3,
        max_gen_len=16,
        max_seq_len=64,
        stop=stop,
        eos_ids=frozenset({2}),
        early_stopping=early_stopping,
    )
    model, tokenizer = hugging_face(with_text), AutoTokenizer.from_pretrained(with_text)
    # A token that is a single byte of no character: no stop string begins in the prompt.
    prompts = [[1, 200], [1, 200, 150, 160]]
    found = searched(with_text, prompts, settings)
    require_beams(found, prompts, settings, lambda prompt: transformers_beams(model, prompt, settings, tokenizer))
    assert stop == ("qq",) or any(one.finish_reason == "stop" for one in found)


def test_log_probabilities_are_the_models_own_and_add_up_to_the_score(folder: Path) -> None:
    settings = Settings(num_beams=4, num_return_sequences=4, max_gen_len=9, max_seq_len=64, logprobs=True)
    model = hugging_face(folder)
    for index, one in enumerate(searched(folder, PROMPTS, settings)):
        prompt = PROMPTS[index // 4]
        with torch.inference_mode():
            known_TV = model(torch.tensor([[*prompt, *one.tokens]])).logits[0].log_softmax(-1)
        own = known_TV[range(len(prompt) - 1, len(known_TV) - 1), one.tokens].tolist()
        # Two implementations in float32, logits of some tens.
        assert one.logprobs == pytest.approx(own, abs=1e-4)
        assert one.score == pytest.approx(sum(own) / 9, abs=1e-4)


def test_a_repetition_penalty_changes_the_score_and_not_the_log_probabilities(folder: Path) -> None:
    penalised = Settings(num_beams=2, max_gen_len=9, max_seq_len=64, logprobs=True, repetition_penalty=1.5)
    model = hugging_face(folder)
    for prompt, one in zip(PROMPTS, searched(folder, PROMPTS, penalised), strict=True):
        with torch.inference_mode():
            known_TV = model(torch.tensor([[*prompt, *one.tokens]])).logits[0].log_softmax(-1)
        own = known_TV[range(len(prompt) - 1, len(known_TV) - 1), one.tokens].tolist()
        assert one.logprobs == pytest.approx(own, abs=1e-4)
        assert one.score is not None
        assert one.score < sum(own) / 9 - 0.01


def test_answers_come_in_order_and_a_prompt_without_room_has_each_of_its_ends_once(folder: Path) -> None:
    settings = Settings(num_beams=3, num_return_sequences=2, max_gen_len=6, max_seq_len=5, echo=True, logprobs=True)
    generation = Generation(load(folder, Mesh()), PROMPTS, settings, range(3))
    events = list(generation.events())
    assert events[:2] == [Event(0, None, None, "length"), Event(1, None, None, "length")]
    assert [event.row for event in events] == [0, 1, *[2] * 4, *[3] * 4, *[4] * 2, *[5] * 2]
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"] * 6
    assert len(generation.scores) == 6
    assert generation.scores[:2] == [0.0, 0.0]
    for prompt, known in zip(PROMPTS, generation.prompt_logprobs, strict=True):
        with torch.inference_mode():
            logprobs_TV = hugging_face(folder)(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert known == pytest.approx(logprobs_TV[range(len(prompt) - 1), prompt[1:]].tolist(), abs=1e-4)


@torch.inference_mode()
def until(folder: Path, steps: int) -> tuple[list[Event], list[float]]:
    """A search that is interrupted when it has made that many steps."""
    settings = Settings(num_beams=3, num_return_sequences=3, max_gen_len=30, max_seq_len=64, length_penalty=0.0)
    decoder, scores = Decoder(load(folder, Mesh()), PROMPTS[:2], settings, [0, 1]), list[float]()
    logits_BV = decoder.prefill()
    return list(search_beams(decoder, logits_BV, None, scores, lambda: decoder.step >= steps)), scores


def test_an_interrupted_search_gives_its_beams_as_they_are(folder: Path) -> None:
    events, scores = until(folder, 4)
    whole = searched(folder, PROMPTS[:2], Settings(num_beams=3, num_return_sequences=3, max_gen_len=4, max_seq_len=64))
    found = gathered(events, 6)
    assert [one.tokens for one in found] == [one.tokens for one in whole]
    assert {one.finish_reason for one in found} == {"stop"}
    assert scores == pytest.approx([one.score * 4 for one in whole if one.score is not None])


def test_a_search_that_is_interrupted_at_once_has_empty_answers(folder: Path) -> None:
    events, _ = until(folder, 0)
    assert events == [Event(row, None, None, "stop") for row in range(6)]


def candidates(board: Board, *values: tuple[float, End | None]) -> list[Beam]:
    return [Beam(total, board.beams[0], 0, token, end=end) for token, (total, end) in enumerate(values)]


def test_a_complete_candidate_beyond_the_best_ones_is_no_answer() -> None:
    board = Board(2, 10, 1.0, False)
    board.take(candidates(board, (-1.0, None), (-2.0, None), (-3.0, End.STOP_TOKEN), (-4.0, None)))
    assert board.answers == []
    assert [beam.token for beam in board.beams] == [0, 1]


def test_complete_candidates_make_way_for_those_behind_them() -> None:
    board = Board(2, 10, 1.0, False)
    board.take(candidates(board, (-1.0, End.STOP_TOKEN), (-2.0, None), (-3.0, None), (-4.0, None)))
    assert [beam.token for _, beam in board.answers] == [0]
    assert [beam.token for beam in board.beams] == [1, 2]
    assert not board.done


# The best beam is at -6 after two tokens, the worst answer at -5 (per token: -3 and -2.5).
@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "done"),
    [(True, 1.0, True), (False, 1.0, True), ("never", 1.0, False), ("never", 0.0, True), ("never", -1.0, True)],
)
def test_only_never_waits_for_beams_that_could_still_win_by_their_length(
    early_stopping: bool, length_penalty: float, done: bool
) -> None:
    board = Board(2, 10, length_penalty, early_stopping)
    board.take(candidates(board, (-1.0, None), (-2.0, None), (-3.0, None), (-4.0, None)))
    both = (-4.0, End.STOP_TOKEN), (-5.0, End.STOP_TOKEN)
    board.take(candidates(board, *both, (-6.0, None), (-7.0, None)))
    assert board.done is done


def test_a_beam_that_is_better_than_the_worst_answer_goes_on_unless_stopping_is_early() -> None:
    for early_stopping, done in ((True, True), (False, False)):
        board = Board(1, 10, 1.0, early_stopping)
        board.take(candidates(board, (-3.0, End.STOP_TOKEN), (-3.0, None)))
        board.take(candidates(board, (-4.0, None), (-9.0, None)))
        # -4 over two tokens beats -3 over one.
        assert board.done is done


PARAMS = Params(
    dim=8,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    ffn_dim=8,
    vocab_size=8,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)


@pytest.mark.parametrize(
    "rows",
    [[1, 0, 2], [1, 2, 0], [0, 0, 0], [2, 2, 1], [0, 1, 2], [0, 0, 1, 1, 2, 2], [2], [1, 1]],
    ids=str,
)
def test_rows_of_the_cache_are_swapped_spread_and_dropped_as_a_whole(rows: list[int]) -> None:
    cache = KVCache(PARAMS, Mesh(), 3, 6, torch.float32, torch.device("cpu"))
    torch.manual_seed(1)
    cache.plan(4)
    for layer in range(2):
        cache.extend(layer, torch.randn(3, 4, 2, 4), torch.randn(3, 4, 2, 4))
    cache.advance([4, 2, 3])
    before = [[x.clone() for x in tensors] for tensors in (cache.keys_LBkSH, cache.values_LBkSH)]
    cache.select(rows)
    assert cache.lengths == [[4, 2, 3][row] for row in rows]
    for tensors, known in zip((cache.keys_LBkSH, cache.values_LBkSH), before, strict=True):
        for x_BkSH, known_BkSH in zip(tensors, known, strict=True):
            assert torch.equal(x_BkSH, torch.stack([known_BkSH[row] for row in rows]))
