"""Processors on the logits of trained models, computed by the reference, against transformers' own processors.

Bit for bit: the same float32 operations on the same numbers, so there is nothing to allow for.
"""

import math
from functools import cache
from itertools import product
from typing import Any

import pytest
import sentencepiece
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.generation.processors import (
    MinP,
    Processor,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    process,
    processors_of,
)
from tests.golden.conftest import REPOSITORY, cases_of, reference_of
from tests.reference import Reference

DEMO = REPOSITORY / "configs" / "demo"
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw"
# Rows of a model: spread over a story, so that some follow nearly nothing and some a long text.
ROWS = 12


@cache
def rows_of(name: str) -> tuple[list[list[int]], Tensor]:
    """The ids before each of some places of a story, and the logits there [B, V]."""
    if name == "demo":
        reference = Reference(DEMO)
        tokens = [1, *sentencepiece.SentencePieceProcessor(str(DEMO / "tokenizer.model")).encode(STORY)]
    else:
        reference, case = reference_of(name), cases_of(name)[0]
        tokens = [*case.prompt_tokens, *case.tokens][:160]
    places = torch.linspace(0, len(tokens) - 1, ROWS).long().tolist()
    return [tokens[: place + 1] for place in places], reference.logits(tokens)[places]


@pytest.fixture(
    params=[(name, dtype) for name in ("stories260K", "stories15M", "demo") for dtype in ("float32", "bfloat16")],
    ids="-".join,
)
def rows(request: pytest.FixtureRequest) -> tuple[list[list[int]], Tensor]:
    """As they are, and as a model in bfloat16 gives them: with many that are equal."""
    name, dtype = request.param
    ids, logits = rows_of(name)
    return ids, logits.to(getattr(torch, dtype)).float()


def theirs(processor: LogitsProcessor | LogitsProcessorList, ids: list[list[int]], logits: Tensor) -> Tensor:
    return torch.cat([processor(torch.tensor([row]), logits[i : i + 1]) for i, row in enumerate(ids)])


PAIRS: list[tuple[Processor, LogitsProcessor]] = [
    *[(Temperature(t), TemperatureLogitsWarper(t)) for t in (1e-5, 0.1, 0.6, 1.7, 10.0)],
    *[(TopK(k), TopKLogitsWarper(k)) for k in (1, 2, 40, 500, 10**6)],
    *[(TopP(p), TopPLogitsWarper(p)) for p in (0.0, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0)],
    *[(MinP(p), MinPLogitsWarper(p)) for p in (0.0, 0.01, 0.1, 0.5, 1.0)],
    *[(RepetitionPenalty(p), RepetitionPenaltyLogitsProcessor(p)) for p in (0.5, 1.1, 1.3, 5.0)],
]


@pytest.mark.parametrize(("ours", "other"), PAIRS, ids=[str(ours) for ours, _ in PAIRS])
def test_each_processor_gives_transformers_scores(
    ours: Processor, other: LogitsProcessor, rows: tuple[list[list[int]], Tensor]
) -> None:
    assert torch.equal(ours(*rows), theirs(other, *rows))


def test_every_combination_gives_transformers_scores(rows: tuple[list[list[int]], Tensor]) -> None:
    lists: dict[str, dict[float, LogitsProcessor | None]] = {
        "repetition_penalty": {1.0: None, 1.2: RepetitionPenaltyLogitsProcessor(1.2)},
        "temperature": {1.0: None, 0.7: TemperatureLogitsWarper(0.7)},
        "top_k": {0: None, 50: TopKLogitsWarper(50)},
        "top_p": {1.0: None, 0.9: TopPLogitsWarper(0.9)},
        "min_p": {0.0: None, 0.05: MinPLogitsWarper(0.05)},
    }
    for values in product(*(choices.items() for choices in lists.values())):
        asked: Any = {name: value for name, (value, _) in zip(lists, values, strict=True)}
        expected = theirs(LogitsProcessorList([one for _, one in values if one is not None]), *rows)
        scores = process(processors_of(**asked, sampling=True), *rows)
        assert torch.equal(scores, expected), asked
        assert bool((scores > -math.inf).any(-1).all())
