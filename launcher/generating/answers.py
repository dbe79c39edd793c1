"""Answers: what came back for a request, as a line of JSON or as text."""

import json
from dataclasses import dataclass, field

from launcher.generating.preflight import Ready
from launcher.generating.requests import Request
from launcher.settings.options import GenerationSection
from model.generation.settings import Event, FinishReason
from model.generation.stopping import answer_text, lead_of


@dataclass(slots=True)
class Answer:
    """What came back for one request; `sequence` counts the answers to the same one."""

    request: Request
    sequence: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    # How a beam search rated it.
    score: float | None = None
    finish_reason: FinishReason = "length"

    def take(self, event: Event) -> None:
        if event.token is not None:
            self.tokens.append(event.token)
            if event.logprob is not None:
                self.logprobs.append(event.logprob)
            if event.likeliest:
                self.likeliest.append(event.likeliest)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason

    def text(self, ready: Ready, stop: tuple[str, ...]) -> str:
        """The text of the answer, cut before its stop string."""
        if self.request.reply is not None:
            return self.request.reply
        return answer_text(ready.tokenizer, self.tokens, stop, ready.context)

    def as_json(self, ready: Ready, section: GenerationSection) -> str:
        """One line, without its end."""
        request = self.request
        fields = _first_fields(request, self.sequence, section.num_return_sequences)
        if request.error is not None:
            return json.dumps({**fields, "error": request.error}, ensure_ascii=False)
        text = self.text(ready, tuple(section.stop or ()))
        fields["generation"] = text
        if request.before or request.after:
            fields["full_text"] = request.before + text + request.after
        fields |= {
            "prompt_tokens": request.tokens,
            "tokens": self.tokens,
            "logprobs": self._known_logprobs() if section.logprobs else None,
            "finish_reason": "stop" if request.reply is not None else self.finish_reason,
        }
        if self.score is not None:
            fields["score"] = self.score
        if section.top_logprobs:
            fields["top_logprobs"] = [{str(token): value for token, value in step} for step in self.likeliest]
        return json.dumps(fields, ensure_ascii=False)

    def as_text(self, ready: Ready, section: GenerationSection) -> str:
        """The answer to be read, with the prompt in front where it is echoed."""
        request, tokenizer = self.request, ready.tokenizer
        text = self.text(ready, tuple(section.stop or ()))
        if request.before or request.after:
            return request.before + text + request.after if section.echo else text
        if not section.echo or request.reply is not None:
            return text
        return tokenizer.decode(request.tokens) + lead_of(tokenizer, request.tokens, self.tokens) + text

    def _known_logprobs(self) -> list[float | None]:
        before = [None, *self.prompt_logprobs] if self.prompt_logprobs is not None else []
        return [*before, *self.logprobs]


def blank_answers(request: Request, copies: int) -> list[Answer]:
    """The answers to a request, before anything has come; one where it is not to be run."""
    return [Answer(request, sequence) for sequence in range(copies if request.to_run else 1)]


def beginnings(request: Request, copies: int) -> list[str]:
    """What the lines of JSON of all answers to a request begin with: enough to tell whose they are."""
    answers = range(copies if request.to_run else 1)
    found = [_first_fields(request, sequence, copies) for sequence in answers]
    return [json.dumps(fields, ensure_ascii=False).removesuffix("}") for fields in found]


def _first_fields(request: Request, sequence: int, copies: int) -> dict[str, object]:
    numbered = copies > 1 and request.error is None
    return {"index": request.index, **({"sequence": sequence} if numbered else {}), **request.asked}
