"""Contrastive search (arXiv:2202.06417): of the likeliest tokens, one that does not repeat what stands there.

Of each step's `top_k` likeliest tokens that one is taken which has the largest

    (1 - alpha) * its probability - alpha * its likeness to the token before that is most like it

where likeness is the cosine of the last layer's hidden states, and the tokens before are those of the prompt and of
the answer so far. All candidates of a row go through the model in one pass, as rivals for one place: the KV cache
holds each row once. Rank 0 alone keeps the hidden states of what stands there, and chooses.

Shapes: B rows, K rivals, S places, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Set

import torch
import torch.nn.functional as F
from torch import Tensor

from model.generation.decoder import Decoder
from model.generation.processors import process, processors_of
from model.generation.settings import Event
from model.generation.single import GO_ON, INTERRUPTED, STOP_STRING, Stops, events_of
from model.tokenizers.base import Tokenizer


def search_contrastive(
    decoder: Decoder,
    logits_BV: Tensor,
    tokenizer: Tokenizer | None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """The events of each step, from the logits behind the prompts [B, V]. Collective."""
    search = _Search(decoder, tokenizer)
    rows, width = len(decoder.ids), min(decoder.settings.top_k, logits_BV.shape[-1])
    running = {row for row, room in enumerate(decoder.room) if room > 0}
    while running:
        rivals = decoder.decide(logits_BV, (rows, width), lambda: search.rivals(logits_BV))  # noqa: B023
        decoder.try_rivals(torch.tensor(rivals, device=logits_BV.device))
        decided = decoder.decide(logits_BV, (rows, 2), lambda: search.choose(rivals, running, interrupted()))  # noqa: B023
        chosen, said = [index for index, _ in decided], [flag for _, flag in decided]
        if INTERRUPTED in said:
            yield from (Event(row, None, None, "stop") for row in sorted(running))
            return
        tokens = [row[index] for row, index in zip(rivals, chosen, strict=True)]
        for event in events_of(decoder, logits_BV, tokens, [flag == STOP_STRING for flag in said], running):
            if event.finish_reason is not None:
                running.discard(event.row)
            yield event
        if running:
            logits_BV = decoder.take_rivals(tokens, chosen, running)
            search.take(running)


class _Search:
    """Rank 0's part: the directions of the hidden states of each row's tokens; nothing on the other ranks."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None) -> None:
        settings = decoder.settings
        self.decoder, self.alpha, self.width = decoder, settings.penalty_alpha, settings.top_k
        self.speaks = decoder.model.mesh.rank == 0
        self.stops = Stops(tokenizer, settings, len(decoder.ids))
        self.processors = processors_of(repetition_penalty=settings.repetition_penalty, sampling=False)
        if self.speaks:
            # The prompts' are padded on the right: what stands behind a row's end is never looked at.
            self.seen_BSD = F.pad(_directions(decoder.hidden_BTD), (0, 0, 0, max(decoder.room)))

    def rivals(self, logits_BV: Tensor) -> Tensor:
        """The likeliest tokens of each row [B, K]."""
        probs_BV = process(self.processors, self.decoder.ids, logits_BV).softmax(-1)
        self.probs_BK, rivals_BK = probs_BV.topk(min(self.width, probs_BV.shape[-1]))
        return rivals_BK

    def choose(self, rivals: list[list[int]], running: Set[int], interrupted: bool) -> Tensor:
        """Which rival each row takes, and what is to be said of it [B, 2]."""
        held_B11 = torch.tensor([len(ids) for ids in self.decoder.ids], device=self.seen_BSD.device).view(-1, 1, 1)
        window = int(held_B11.max())
        likeness_BKS = _directions(self.decoder.hidden_BTD) @ self.seen_BSD[:, :window].transpose(1, 2)
        unseen_B1S = torch.arange(window, device=held_B11.device) >= held_B11
        worst_BK = likeness_BKS.masked_fill(unseen_B1S, -torch.inf).amax(-1)
        chosen_B = ((1 - self.alpha) * self.probs_BK - self.alpha * worst_BK).argmax(-1)
        tokens = [row[index] for row, index in zip(rivals, chosen_B.tolist(), strict=True)]
        stopped = self.stops.push(tokens, running)
        said = [INTERRUPTED if interrupted else STOP_STRING if stop else GO_ON for stop in stopped]
        return torch.stack([chosen_B, torch.tensor(said, device=chosen_B.device)], -1)

    def take(self, running: Set[int]) -> None:
        """Take in the hidden states of the tokens that were just decoded."""
        if self.speaks:
            rows = sorted(running)
            ends = [len(self.decoder.ids[row]) - 1 for row in rows]
            self.seen_BSD[rows, ends] = _directions(self.decoder.hidden_BTD)[rows, 0]


def _directions(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
