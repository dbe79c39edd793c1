"""How to generate, what comes of it, and what can be refused before a model is there. Without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from parallel.errors import RefusedError

FinishReason = Literal["stop", "length"]
EarlyStopping = bool | Literal["never"]

MAX_TEMPERATURE = 10.0
# Below this two logits that are a hundredth apart have probabilities of 1 to e^-1000: the likeliest token is certain.
GREEDY_BELOW = 1e-5
# The second best and so on are for looking at, not for keeping whole distributions.
MAX_TOP_LOGPROBS = 20
# Contrastive search runs every candidate through the model.
MAX_CANDIDATES = 64
# Tokens of all rows together that go through the model at once while prompts are read: enough to keep it busy, and so
# few that what is passed from layer to layer stays small however long the prompts are.
PREFILL_TOKENS = 4096


def prefill_tokens(rows: int) -> int:
    """Tokens of each row in one pass of a prefill."""
    return max(1, PREFILL_TOKENS // rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to generate; the same for all prompts of a batch. RefusedError where a value is out of its range.

    With `num_beams` above 1 it is a beam search, with `penalty_alpha` above 0 a contrastive search among the
    `top_k` likeliest tokens: both always take the best, so temperature, top_p and min_p do nothing there. Otherwise
    each token is drawn, or at temperature 0 the likeliest is taken.
    """

    max_gen_len: int
    max_seq_len: int
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    # Above 1 it makes less likely what stands in the prompt or the answer already (arXiv:1909.05858).
    repetition_penalty: float = 1.0
    num_beams: int = 1
    # Answers to each prompt: the best beams, or independent draws.
    num_return_sequences: int = 1
    # Beams compete by their log-probability over their length to the power of this.
    length_penalty: float = 1.0
    # Whether a beam search ends when it has num_beams complete answers: as in transformers.
    early_stopping: EarlyStopping = False
    penalty_alpha: float = 0.0
    seed: int = 1
    logprobs: bool = False
    # Also that many likeliest tokens of each step with their log-probabilities.
    top_logprobs: int = 0
    # Also compute the prompt's log-probabilities.
    echo: bool = False
    eos_ids: frozenset[int] = frozenset()
    # An answer ends before the first of these texts.
    stop: Sequence[str] = ()
    # Ids that the text of an answer is read behind (infilling, where a leading space counts).
    context: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, (wanted, kind, low, high) in _RANGES.items():
            value: Any = getattr(self, name)
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                raise RefusedError(f"{name} is {value!r}; wanted {wanted}")
        self._check_search()

    def _check_search(self) -> None:
        if self.early_stopping not in (False, True, "never"):
            raise RefusedError(f"early_stopping is {self.early_stopping!r}; wanted true, false or 'never'")
        if self.num_beams > 1 and self.top_logprobs:
            raise RefusedError(
                f"top_logprobs is {self.top_logprobs} with num_beams {self.num_beams}; a beam search does not keep the "
                "tokens that it did not take: leave top_logprobs at 0, or num_beams at 1"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise RefusedError(
                f"num_return_sequences is {self.num_return_sequences} but num_beams is {self.num_beams}; a beam search "
                "has as many answers as beams: ask for fewer, or raise num_beams"
            )
        if self.penalty_alpha == 0:
            if self.num_return_sequences > 1 and self.num_beams == 1 and self.greedy:
                raise RefusedError(
                    f"num_return_sequences is {self.num_return_sequences} at temperature {self.temperature:g}, where "
                    "all answers would be the same; raise temperature, or give num_beams"
                )
            return
        if self.num_beams > 1 or self.num_return_sequences > 1:
            raise RefusedError(
                f"penalty_alpha is {self.penalty_alpha} with num_beams {self.num_beams} and num_return_sequences "
                f"{self.num_return_sequences}; contrastive search has one answer to a prompt: leave these at 1"
            )
        if not 2 <= self.top_k <= MAX_CANDIDATES:
            raise RefusedError(
                f"top_k is {self.top_k} with penalty_alpha {self.penalty_alpha}; contrastive search chooses among the "
                f"top_k likeliest tokens: wanted a top_k of 2 to {MAX_CANDIDATES}, as --top_k 4"
            )

    @property
    def search(self) -> Literal["sampling", "beams", "contrastive"]:
        if self.penalty_alpha > 0:
            return "contrastive"
        return "beams" if self.num_beams > 1 else "sampling"

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken (and of equals the first) instead of one being drawn."""
        return self.temperature < GREEDY_BELOW

    @property
    def width(self) -> int:
        """Sequences held at once for each prompt."""
        return max(self.num_beams, self.num_return_sequences)


_Kind = tuple[type, ...]
_WHOLE, _NUMBER = (int,), (int, float)
# Name to what is wanted, of which kind, and the least and the most.
_RANGES: dict[str, tuple[str, _Kind, float, float]] = {
    "max_gen_len": ("1 or more tokens", _WHOLE, 1, math.inf),
    "temperature": (f"a number of 0 (greedy) to {MAX_TEMPERATURE:g}", _NUMBER, 0, MAX_TEMPERATURE),
    "top_p": ("a number of 0 (the likeliest token) to 1 (no filter)", _NUMBER, 0, 1),
    "top_k": ("a whole number, 0 (no filter) or more", _WHOLE, 0, math.inf),
    "min_p": ("a number of 0 (no filter) to 1 (the likeliest token)", _NUMBER, 0, 1),
    "repetition_penalty": ("a number of 0.01 to 100 (1 does nothing)", _NUMBER, 0.01, 100),
    "length_penalty": ("a number of -10 to 10", _NUMBER, -10, 10),
    "num_beams": ("1 (no beam search) or more beams", _WHOLE, 1, math.inf),
    "num_return_sequences": ("1 or more answers to a prompt", _WHOLE, 1, math.inf),
    "penalty_alpha": ("a number of 0 (no contrastive search) to 1", _NUMBER, 0, 1),
    "top_logprobs": (f"a whole number of 0 to {MAX_TOP_LOGPROBS}", _WHOLE, 0, MAX_TOP_LOGPROBS),
}


class How(TypedDict, total=False):
    """What may be said of a generation beside Meta's arguments; see `Settings` for what each does.

    `top_logprobs` is for those who read the events of `Llama.start`: predictions have no place for them.
    """

    top_k: int
    min_p: float
    repetition_penalty: float
    num_beams: int
    num_return_sequences: int
    length_penalty: float
    early_stopping: EarlyStopping
    penalty_alpha: float
    top_logprobs: int
    stop: Sequence[str]
    context: Sequence[int]


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to one answer: a token (None where the end token came), and the end where it ended.

    Answer `row` belongs to prompt `row // num_return_sequences` of the batch. `likeliest`: ids and
    log-probabilities of the likeliest tokens of the step, the likeliest first, where top_logprobs asked for them.
    """

    row: int
    token: int | None
    logprob: float | None
    finish_reason: FinishReason | None
    likeliest: tuple[tuple[int, float], ...] = ()


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, max_seq_len: int) -> None:
    """RefusedError names the first prompt that cannot be run, and why."""
    if not _is_list(prompts):
        raise RefusedError(f"prompts are {type(prompts).__name__}; wanted a list of lists of token ids")
    if not prompts:
        raise RefusedError("no prompts were given (an empty list); give one prompt or more")
    for index, prompt in enumerate(prompts):
        if not _is_list(prompt):
            raise RefusedError(f"prompt {index} is {prompt!r}; wanted a list of token ids")
        if not prompt:
            raise RefusedError(f"prompt {index} has no tokens; an empty text has one, the bos token")
        if len(prompt) > max_seq_len:
            raise RefusedError(
                f"prompt {index} has {len(prompt)} tokens but max_seq_len is {max_seq_len}; shorten "
                "it, or raise --max_seq_len"
            )
        for token in prompt:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
                raise RefusedError(f"prompt {index} holds {token!r}; wanted token ids of 0 to {vocab_size - 1}")


def check_eos_ids(eos_ids: Sequence[int], vocab_size: int) -> None:
    """RefusedError names what is no token."""
    if not _is_list(eos_ids):
        raise RefusedError(f"eos_ids (--eos_ids) is {eos_ids!r}; wanted a list of token ids")
    for token in eos_ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise RefusedError(f"eos_ids (--eos_ids) holds {token!r}; wanted token ids of 0 to {vocab_size - 1}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
