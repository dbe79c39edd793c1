"""Beam search: several beginnings of each answer go on together, and the likeliest of all their continuations stay.

What counts as a candidate, when one is complete and when a prompt is done are the rules of transformers 5
(`_beam_search`), so that its sequences and scores come out. Prompts are searched each for itself: one that is done
earlier, or has less room, goes on idly. Rank 0 alone keeps scores and answers.

Shapes: P prompts, N beams of each, R = P * N rows, C candidates of a prompt, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from model.generation.decoder import Decoder
from model.generation.processors import process, processors_of
from model.generation.settings import EarlyStopping, Event, FinishReason
from model.tokenizers.base import Tokenizer
from parallel.collectives import broadcast

# What takes a beam out of the running without taking it away: below any sum of log-probabilities.
_FAR = 1e9


class End(IntEnum):
    """How an answer ended: with its last token, or behind it."""

    FULL = 0
    STOP_STRING = 1
    STOP_TOKEN = 2
    INTERRUPTED = 3


@dataclass(frozen=True, slots=True)
class Beam:
    """A token behind beam `place` of its prompt, which was `before`; a beginning without tokens has none.

    `total`: the sum of the log-probabilities of all tokens, after processing. `logprob`: this token's in the model.
    """

    total: float
    before: "Beam | None" = None
    place: int = 0
    token: int = 0
    logprob: float = 0.0
    end: End | None = None

    def path(self) -> list["Beam"]:
        """All tokens, the first one first."""
        found: list[Beam] = []
        beam = self
        while beam.before is not None:
            found.append(beam)
            beam = beam.before
        return found[::-1]


class Board:
    """One prompt's beams that go on, and its best complete answers with their scores, the best first of each."""

    def __init__(self, width: int, room: int, length_penalty: float, early_stopping: EarlyStopping) -> None:
        self.width, self.room = width, room
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        # One beginning: several would have the same continuations.
        self.beams = [Beam(-_FAR if place else 0.0) for place in range(width)]
        self.answers: list[tuple[float, Beam]] = []
        self.length = 0
        self.done = room <= 0

    def take(self, candidates: Sequence[Beam]) -> None:
        """Go a token on, with the best of all continuations (more than `width`), the best first."""
        self.length += 1
        # Of the candidates beyond the width, complete ones count for nothing: they were there to find others behind.
        self._rate([beam for beam in candidates[: self.width] if beam.end is not None])
        going = [beam if beam.end is None else replace(beam, total=beam.total - _FAR) for beam in candidates]
        self.beams = sorted(going, key=lambda beam: -beam.total)[: self.width]
        full = len(self.answers) == self.width
        over = all(beam.end is not None for beam in candidates)
        self.done = over or (full and (self.early_stopping is True or not self._may_improve()))

    def close(self) -> None:
        """End all beams where they are."""
        self._rate([replace(beam, end=End.INTERRUPTED) for beam in self.beams])
        self.done = True

    def _rate(self, complete: Sequence[Beam]) -> None:
        rated = [*self.answers, *((self._score(beam.total, self.length), beam) for beam in complete)]
        self.answers = sorted(rated, key=lambda one: -one[0])[: self.width]

    def _may_improve(self) -> bool:
        """Whether the best beam could still beat the worst answer: as it is, or with "never" at any length."""
        at_its_end = self.early_stopping == "never" and self.length_penalty > 0
        best = self._score(self.beams[0].total, self.room if at_its_end else self.length)
        return best > self.answers[-1][0]

    def _score(self, total: float, length: int) -> float:
        scale: float = max(length, 1) ** self.length_penalty
        return total / scale


def search_beams(
    decoder: Decoder,
    logits_BV: Tensor,
    tokenizer: Tokenizer | None,
    scores: list[float],
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """The events of all answers, at the end; `scores` is filled with how each was rated. Collective."""
    width, copies = decoder.settings.num_beams, decoder.settings.num_return_sequences
    room = list(decoder.room)
    logits_RV = decoder.spread(logits_BV, width)
    search = _Search(decoder, tokenizer, room)
    running = {row for row, left in enumerate(decoder.room) if left > 0}
    while running:
        shape = (len(decoder.ids), 3)
        decided = decoder.decide(logits_RV, shape, lambda: search.choose(logits_RV, interrupted()))  # noqa: B023
        running -= {row for row, (_, _, done) in enumerate(decided) if done}
        if running:
            tokens, parents = [token for token, _, _ in decided], [parent for _, parent, _ in decided]
            logits_RV = decoder.advance(tokens, running, parents)
    answers = search.answers(copies) if decoder.model.mesh.rank == 0 else []
    for number, answer in enumerate(_shared(decoder, answers, len(room) * copies)):
        scores.append(answer.score)
        if room[number // copies] > 0:
            yield from answer.events(number, decoder.settings.logprobs)


class _Search:
    """Rank 0's part: the boards of all prompts."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None, room: Sequence[int]) -> None:
        settings = decoder.settings
        self.decoder, self.tokenizer, self.settings = decoder, tokenizer, settings
        self.starts = [len(ids) for ids in decoder.ids]
        self.boards = [
            Board(settings.num_beams, left, settings.length_penalty, settings.early_stopping) for left in room
        ]
        # The best N all may be complete, with each of the end tokens: behind them are N that go on.
        self.count = max(2, 1 + len(settings.eos_ids)) * settings.num_beams
        self.processors = processors_of(repetition_penalty=settings.repetition_penalty, sampling=False)

    def choose(self, logits_RV: Tensor, interrupted: bool) -> Tensor:
        """Each row's token, the row that it stands behind, and whether its prompt is done [R, 3]."""
        for board, candidates in zip(self.boards, self._candidates(logits_RV), strict=True):
            if not board.done and interrupted:
                board.close()
            elif not board.done:
                board.take(candidates)
        width, table = self.settings.num_beams, []
        for first, board in zip(range(0, len(self.starts), width), self.boards, strict=True):
            if board.done:
                table += [(0, first + place, 1) for place in range(width)]
            else:
                table += [(beam.token, first + beam.place, 0) for beam in board.beams]
        return torch.tensor(table)

    def answers(self, copies: int) -> list["_Answer"]:
        """The best answers of each prompt; an empty one for each that had no room."""
        rated = [
            board.answers[:copies] if board.room > 0 else [(0.0, Beam(0.0, end=End.FULL))] * copies
            for board in self.boards
        ]
        return [_Answer.of(score, beam) for some in rated for score, beam in some]

    def _candidates(self, logits_RV: Tensor) -> Iterator[list[Beam]]:
        prompts, vocabulary = len(self.boards), logits_RV.shape[-1]
        logprobs_RV = logits_RV.log_softmax(-1)
        scores_RV = process(self.processors, self.decoder.ids, logprobs_RV)
        totals_R1 = torch.tensor([[beam.total] for board in self.boards for beam in board.beams]).to(scores_RV)
        totals_PM = (scores_RV + totals_R1).view(prompts, -1)
        best_PC, places_PC = totals_PM.topk(min(self.count, totals_PM.shape[1]))
        own_PC = logprobs_RV.view(prompts, -1).gather(-1, places_PC)
        for prompt, values in enumerate(zip(best_PC.tolist(), places_PC.tolist(), own_PC.tolist(), strict=True)):
            board, found = self.boards[prompt], []
            for total, index, logprob in zip(*values, strict=True):
                place, token = divmod(index, vocabulary)
                end = None if board.done else self._end(prompt * board.width + place, token)
                found.append(Beam(total, board.beams[place], place, token, logprob, end))
            yield found

    def _end(self, row: int, token: int) -> End | None:
        """Whether and how row `row` ends with `token`."""
        if token in self.settings.eos_ids:
            return End.STOP_TOKEN
        new = [*self.decoder.ids[row][self.starts[row] :], token]
        if self.settings.stop and self._holds_stop(new):
            return End.STOP_STRING
        return End.FULL if len(new) >= self.decoder.room[row] else None

    def _holds_stop(self, new: Sequence[int]) -> bool:
        assert self.tokenizer is not None
        context = self.settings.context
        text = self.tokenizer.decode([*context, *new])[len(self.tokenizer.decode(context)) :]
        return any(stop in text for stop in self.settings.stop)


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer as all ranks know it in the end. `tokens` are without an end token."""

    score: float
    end: End
    tokens: list[int]
    logprobs: list[float]

    @staticmethod
    def of(score: float, beam: Beam) -> "_Answer":
        assert beam.end is not None
        path = beam.path()
        if beam.end == End.STOP_TOKEN:
            path.pop()
        return _Answer(score, beam.end, [one.token for one in path], [one.logprob for one in path])

    def events(self, row: int, logprobs: bool) -> Iterator[Event]:
        with_last = self.end in (End.FULL, End.STOP_STRING)
        reason: FinishReason = "length" if self.end == End.FULL else "stop"
        for left, token, logprob in zip(range(len(self.tokens))[::-1], self.tokens, self.logprobs, strict=True):
            ended = with_last and left == 0
            yield Event(row, token, logprob if logprobs else None, reason if ended else None)
        if not with_last:
            yield Event(row, None, None, reason)


def _shared(decoder: Decoder, answers: Sequence[_Answer], count: int) -> list[_Answer]:
    """Rank 0's answers on every rank, by one broadcast of whole numbers. Collective."""
    mesh, width = decoder.model.mesh, decoder.step + 1
    table = torch.zeros((count, 3 + 2 * width), dtype=torch.long)
    for row, answer in zip(table, answers, strict=False):
        held = len(answer.tokens)
        row[0], row[1] = answer.end, held
        row[3 : 3 + held] = torch.tensor(answer.tokens)
        # A float's bits, as a whole number.
        floats = torch.tensor([answer.score, *answer.logprobs], dtype=torch.float64).view(torch.long)
        row[2], row[3 + width : 3 + width + held] = floats[0], floats[1:]
    table = broadcast(table.to(decoder.model.device), mesh).cpu()
    found = []
    for row in table:
        held, floats = int(row[1]), row.view(torch.float64)
        tokens, logprobs = row[3 : 3 + held].tolist(), floats[3 + width : 3 + width + held].tolist()
        found.append(_Answer(float(floats[2]), End(int(row[0])), tokens, logprobs))
    return found
