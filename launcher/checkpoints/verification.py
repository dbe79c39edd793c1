"""Greedy answers at several MP sizes: whether they agree, and where they first differ. No torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SHOWN_DIFFERENCES = 10
_SHOWN_CHARACTERS = 40

# The text of a token behind others.
TextOf = Callable[[Sequence[int], int], str]


@dataclass(frozen=True, slots=True)
class Greedy:
    """What a prompt was continued with at one size. `likeliest`: of each step some tokens' log-probabilities."""

    prompt: str
    prompt_tokens: list[int]
    tokens: list[int]
    logprobs: list[float]
    likeliest: list[dict[int, float]]

    @classmethod
    def of(cls, answer: Mapping[str, Any], end_ids: Collection[int]) -> "Greedy":
        """From an answer of `complete`, which may go on behind an end token: that is the last one kept."""
        tokens = answer["tokens"]
        ends = (place for place, token in enumerate(tokens, 1) if token in end_ids)
        count = next(ends, len(tokens))
        likeliest = [{int(token): value for token, value in step.items()} for step in answer["top_logprobs"][:count]]
        return cls(answer["prompt"], answer["prompt_tokens"], tokens[:count], answer["logprobs"][:count], likeliest)

    def lead(self, place: int, other: int) -> tuple[float, bool]:
        """By how much the logit of the token at `place` is above that of `other`, and whether it is more than that.

        A difference of log-probabilities is one of logits.
        """
        step = self.likeliest[place]
        return self.logprobs[place] - step.get(other, min(step.values())), other not in step


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one size chose where the other chose otherwise, and its lead there over the other's choice."""

    mp: int
    token: int
    text: str
    lead: float
    # True: the other token was not among those whose log-probabilities are known.
    lead_is_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first token of a prompt's answer that differs."""

    index: int
    prompt: str
    place: int
    reference: Choice
    other: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One size against the reference, over the tokens of each prompt up to the first that differs."""

    mp: int
    agree: bool
    same_tokens: int
    largest_logprob_difference: float
    differences: list[Difference]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found. `agree`: every token is the same; in the exact mode also every log-probability."""

    checkpoint: str
    agree: bool
    exact: bool
    dtype: str
    reference_mp: int
    prompts: int
    tokens: int
    # How long each size took, its start and its loading included.
    seconds: dict[int, float]
    compared: list[Comparison]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    reference_mp: int, reference: Sequence[Greedy], mp: int, other: Sequence[Greedy], text_of: TextOf
) -> Comparison:
    """Compare what two sizes answered to the same prompts."""
    same, largest, differences = 0, 0.0, list[Difference]()
    for index, (one, two) in enumerate(zip(reference, other, strict=True)):
        assert one.prompt_tokens == two.prompt_tokens
        pairs = enumerate(zip(one.tokens, two.tokens, strict=False))
        place = next((place for place, (mine, theirs) in pairs if mine != theirs), None)
        equal = slice(len(one.tokens) if place is None else place)
        same += len(one.tokens[equal])
        apart = [abs(mine - theirs) for mine, theirs in zip(one.logprobs[equal], two.logprobs[equal], strict=True)]
        largest = max(largest, *apart) if apart else largest
        if place is not None:
            before = one.prompt_tokens + one.tokens[equal]
            sides = ((reference_mp, one, two), (mp, two, one))
            mine, theirs = (_choice(size, own, than, place, before, text_of) for size, own, than in sides)
            differences.append(Difference(index=index, prompt=one.prompt, place=place, reference=mine, other=theirs))
    return Comparison(
        mp=mp,
        agree=not differences,
        same_tokens=same,
        largest_logprob_difference=largest,
        differences=differences,
    )


def _choice(mp: int, own: Greedy, other: Greedy, place: int, before: Sequence[int], text_of: TextOf) -> Choice:
    token = own.tokens[place]
    lead, more = own.lead(place, other.tokens[place])
    return Choice(mp=mp, token=token, text=text_of(before, token), lead=lead, lead_is_more=more)


def as_text(found: Verification) -> str:
    """The report for the eye."""
    lines = [
        f"{found.checkpoint}: {_counted(found.prompts, 'prompt')}, {_counted(found.tokens, 'token')} at MP "
        f"{found.reference_mp}, "
        f"{'in the exact mode' if found.exact else f'dtype {found.dtype}'}"
    ]
    for one in found.compared:
        lines += _comparison_lines(one, found.prompts)
    lines.append(_verdict(found))
    return "\n".join(lines) + "\n"


def _comparison_lines(one: Comparison, prompts: int) -> list[str]:
    agreed = prompts - len(one.differences)
    said = "all tokens agree" if one.agree else f"{agreed} of {_counted(prompts, 'prompt')} agree"
    lines = [
        f"MP {one.mp}: {said}; log-probabilities of equal tokens differ by {one.largest_logprob_difference:.2g} at most"
    ]
    lines += [_difference_line(difference) for difference in one.differences[:_SHOWN_DIFFERENCES]]
    left = len(one.differences) - _SHOWN_DIFFERENCES
    return [*lines, f"  and {_counted(left, 'prompt')} more: --json lists them"] if left > 0 else lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _difference_line(found: Difference) -> str:
    prompt = found.prompt if len(found.prompt) <= _SHOWN_CHARACTERS else f"{found.prompt[:_SHOWN_CHARACTERS]}..."
    sides = "; ".join(_side(choice) for choice in (found.reference, found.other))
    return f"  prompt {found.index} ({prompt!r}), tokens[{found.place}]: {sides}"


def _side(choice: Choice) -> str:
    more = "more than " if choice.lead_is_more else ""
    return f"MP {choice.mp} has {choice.token} ({choice.text!r}), its logit ahead by {more}{choice.lead:.3g}"


def _verdict(found: Verification) -> str:
    sizes = ", ".join(str(mp) for mp in (found.reference_mp, *(one.mp for one in found.compared)))
    if found.agree:
        return f"MP {sizes} agree{' to the last bit' if found.exact else ''}"
    if found.exact:
        return (
            f"MP {sizes} do not agree to the last bit, as the exact mode must: a fault of shardrun's; please report it"
        )
    return f"MP {sizes} do not agree; a lead about as small as those differences is a tie, which rounding decides"
