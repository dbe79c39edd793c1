"""Greedy decoding and sampling: a token a step for each answer, chosen on rank 0."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from model.generation.decoder import Decoder, likeliest_of, logprobs_of
from model.generation.processors import process, processors_of
from model.generation.sampling import draw, uniform
from model.generation.settings import Event, Settings
from model.generation.stopping import AnswerStream
from model.tokenizers.base import Tokenizer

# What rank 0 says of each row beside its token.
GO_ON, STOP_STRING, INTERRUPTED = range(3)


def draw_tokens(
    decoder: Decoder, logits_BV: Tensor, tokenizer: Tokenizer | None, interrupted: Callable[[], bool]
) -> Iterator[Event]:
    """The events of each step, from the logits behind the prompts [B, V]. Collective."""
    settings = decoder.settings
    logits_BV = decoder.spread(logits_BV, settings.num_return_sequences)
    stops = Stops(tokenizer, settings, len(decoder.ids))
    running = {row for row, room in enumerate(decoder.room) if room > 0}
    choose = _Chooser(decoder)
    while running:
        decided = decoder.decide(
            logits_BV,
            (len(decoder.ids), 2),
            lambda: choose(logits_BV, stops, running, interrupted()),  # noqa: B023
        )
        tokens, said = [token for token, _ in decided], [flag for _, flag in decided]
        if INTERRUPTED in said:
            yield from (Event(row, None, None, "stop") for row in sorted(running))
            return
        for event in events_of(decoder, logits_BV, tokens, [flag == STOP_STRING for flag in said], running):
            if event.finish_reason is not None:
                running.discard(event.row)
            yield event
        if running:
            logits_BV = decoder.advance(tokens, running)


class _Chooser:
    """Rank 0's choice at each step."""

    def __init__(self, decoder: Decoder) -> None:
        settings = decoder.settings
        self.decoder, self.greedy = decoder, settings.greedy
        self.processors = processors_of(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            sampling=not self.greedy,
        )

    def __call__(self, logits_BV: Tensor, stops: "Stops", running: Collection[int], interrupted: bool) -> Tensor:
        """Each row's token, and what is to be said of it [B, 2]."""
        tokens = self._tokens(logits_BV)
        if not (stops.streams or interrupted):
            # The host has no use for the tokens yet.
            return torch.stack([tokens, torch.full_like(tokens, GO_ON)], -1)
        said = [STOP_STRING if stopped else GO_ON for stopped in stops.push(tokens.tolist(), running)]
        if interrupted:
            said = [INTERRUPTED] * len(said)
        return torch.stack([tokens, torch.tensor(said, device=tokens.device)], -1)

    def _tokens(self, logits_BV: Tensor) -> Tensor:
        decoder, settings = self.decoder, self.decoder.settings
        scores_BV = process(self.processors, decoder.ids, logits_BV)
        if self.greedy:
            return scores_BV.argmax(-1)
        copies = settings.num_return_sequences
        draws = [uniform(settings.seed, index, decoder.step, row % copies) for row, index in enumerate(decoder.indices)]
        return draw(scores_BV, draws)


class Stops:
    """The text of each answer, watched for stop strings. Used on rank 0."""

    def __init__(self, tokenizer: Tokenizer | None, settings: Settings, rows: int) -> None:
        stop, context = settings.stop, settings.context
        self.streams = [AnswerStream(tokenizer, stop, context) for _ in range(rows)] if stop and tokenizer else []

    def push(self, tokens: Sequence[int], running: Collection[int]) -> list[bool]:
        """Whether each row's text, with its new token, holds a stop string."""
        for row in running if self.streams else ():
            self.streams[row].push(tokens[row])
        return [bool(self.streams) and self.streams[row].stopped for row in range(len(tokens))]


def events_of(
    decoder: Decoder, logits_BV: Tensor, tokens: Sequence[int], stopped: Sequence[bool], running: Collection[int]
) -> Iterator[Event]:
    """What a step did: `tokens` chosen by these logits, before they are put behind their rows."""
    settings = decoder.settings
    logprobs = logprobs_of(logits_BV, tokens) if settings.logprobs else None
    likeliest = likeliest_of(logits_BV, settings.top_logprobs) if settings.top_logprobs else None
    for row in sorted(running):
        if tokens[row] in settings.eos_ids:
            yield Event(row, None, None, "stop")
            continue
        full = decoder.step + 1 >= decoder.room[row]
        yield Event(
            row,
            tokens[row],
            None if logprobs is None else logprobs[row],
            "stop" if stopped[row] else "length" if full else None,
            () if likeliest is None else likeliest[row],
        )
