"""Beam search on two trained models at MP 1 and 2: transformers' sequences and scores, for each prompt of a batch."""

import itertools
import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from model.generation.settings import Settings
from model.hugging_face.tokenizer_files import tokenizer_files
from tests.distributed.threads import run_as_threads
from tests.golden.conftest import END_OF_STORY, MODELS, llama_of
from tests.golden.test_one_process import as_hugging_face
from tests.searches import Found, require_beams, searched, transformers_beams

TEXTS = ("", "Once upon a time", "Lily saw a big")
hugging_face = cache(as_hugging_face)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    how: dict[str, Any]
    # Single pieces that end an answer, as an end token does.
    ends: tuple[str, ...] = ()
    tokens: int = 24

    def settings(self) -> Settings:
        encode = llama_of(self.name).text_tokenizer().encode
        ends = {encode("a" + text, bos=False, eos=False)[-1] for text in self.ends}
        return Settings(max_gen_len=self.tokens, max_seq_len=256, eos_ids=frozenset({END_OF_STORY, *ends}), **self.how)


CASES = [
    Case("stories260K", {"num_beams": 2}),
    Case("stories260K", {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True}, (".",)),
    Case("stories260K", {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 0.0}, (".", ",", "!")),
    Case("stories260K", {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"}, (".",)),
    Case("stories260K", {"num_beams": 4, "num_return_sequences": 2, "repetition_penalty": 1.2}, (".",)),
    Case("stories260K", {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -1.0}, (".",)),
    Case("stories15M", {"num_beams": 4, "num_return_sequences": 4}, (".",), 16),
]


def check(case: Case, mps: tuple[int, ...]) -> list[Found]:
    """The answers of all MPs are transformers'."""
    llama, settings = llama_of(case.name), case.settings()
    prompts = [llama.encode_prompt(text, 0) for text in TEXTS]
    known = {tuple(prompt): transformers_beams(hugging_face(case.name), prompt, settings) for prompt in prompts}
    found: list[Found] = []
    for mp in mps:
        for found in run_as_threads(mp, lambda mesh: searched(MODELS / case.name, prompts, settings, mesh)):
            require_beams(found, prompts, settings, lambda prompt: known[tuple(prompt)])
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequences_and_scores_are_transformers(case: Case) -> None:
    found = check(case, (1, 2))
    if case.ends:
        assert any(one.finish_reason == "stop" for one in found)


MATRIX = [
    Case(
        name,
        {
            "num_beams": beams,
            "num_return_sequences": beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "repetition_penalty": repetition_penalty,
        },
        ends,
    )
    for name, beams, length_penalty, early_stopping, repetition_penalty, ends in itertools.product(
        ("stories260K", "stories15M"),
        (2, 4, 5),
        (0.0, 1.0, 2.0, -1.0),
        (False, True, "never"),
        (1.0, 1.2),
        ((), (".",)),
    )
]


@pytest.mark.drill
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_sequences_and_scores_are_transformers_for_every_combination(case: Case) -> None:
    check(case, (1, 2, 4) if case.name == "stories260K" else (1, 2))


def stopped(name: str, stop: tuple[str, ...], folder: Path, **how: Any) -> list[Found]:
    """Our answers with stop strings, which must be those that transformers has with its `stop_strings`."""
    shutil.copy(MODELS / name / "tokenizer.model", folder)
    for file, content in tokenizer_files(folder / "tokenizer.model", 2048).items():
        (folder / file).write_text(json.dumps(content))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    model: LlamaForCausalLM = hugging_face(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Behind some text, a stop string that begins with a space may come first of all.
    context = tuple(llama_of(name).text_tokenizer().encode("a", bos=False, eos=False))
    settings = Settings(
        max_gen_len=24, max_seq_len=256, eos_ids=frozenset({END_OF_STORY}), stop=stop, context=context, **how
    )
    prompts = [llama_of(name).encode_prompt(text, 0) for text in TEXTS[1:]]
    for found in run_as_threads(2, lambda mesh: searched(MODELS / name, prompts, settings, mesh)):
        require_beams(found, prompts, settings, lambda prompt: transformers_beams(model, prompt, settings, tokenizer))
    return found


@pytest.mark.parametrize(
    ("stop", "how"),
    [
        (("park", "happy"), {"num_beams": 4, "num_return_sequences": 4}),
        ((" the", "."), {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True}),
        # So many that hardly a candidate is not complete.
        (("a", "e", "i", "o", "u"), {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 2.0}),
    ],
    ids=str,
)
def test_stop_strings_end_beams_as_in_transformers(stop: tuple[str, ...], how: dict[str, Any], tmp_path: Path) -> None:
    found = stopped("stories260K", stop, tmp_path, **how)
    assert any(one.finish_reason == "stop" for one in found)
