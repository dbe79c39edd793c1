"""One batch from prompts to events: by drawing tokens, by beam search or by contrastive search.

Every rank runs this with the same prompts and settings.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from model.generation.beams import search_beams
from model.generation.contrastive import search_contrastive
from model.generation.decoder import Decoder
from model.generation.settings import Event, Settings
from model.generation.single import draw_tokens
from model.tokenizers.base import Tokenizer
from model.transformer import Transformer


class Generation:
    """One batch being generated. Iterate `events()`; then `prompt_logprobs` holds what `echo` asked for, and
    `scores` how a beam search rated each answer."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        indices: Sequence[int],
        tokenizer: Tokenizer | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """`indices`: which prompt of the whole run each is; they decide the random numbers. `tokenizer`: needed where
        there are stop strings. `interrupted`: asked on rank 0 at every step; true ends the batch."""
        assert tokenizer is not None or not settings.stop, "stop strings need a tokenizer"
        self.settings = settings
        self.tokenizer = tokenizer
        self.interrupted = interrupted
        self.decoder = Decoder(model, prompts, settings, indices)
        self.prompt_logprobs: list[list[float]] = []
        self.scores: list[float] = []

    @property
    def cache_bytes(self) -> int:
        """Bytes of this rank's KV cache for the batch."""
        return self.decoder.cache_bytes

    @torch.inference_mode()
    def events(self) -> Iterator[Event]:
        """The events of each step, answer by answer. Collective: every rank must iterate to the end.

        A search yields all its events at the end: until then it may still choose other answers.
        """
        decoder, settings = self.decoder, self.settings
        copies = settings.num_return_sequences
        full = [row for row, room in enumerate(decoder.room) if room <= 0]
        yield from (Event(row * copies + copy, None, None, "length") for row in full for copy in range(copies))
        if len(full) == len(decoder.room):
            # As a beam search rates an answer without a token.
            self.scores += [0.0] * (len(full) * copies) if settings.search == "beams" else []
            if not (settings.echo and settings.logprobs):
                return
        logits_BV = decoder.prefill()
        if settings.echo and settings.logprobs:
            self.prompt_logprobs = decoder.prompt_logprobs()
        if len(full) == len(decoder.room):
            return
        if settings.search == "beams":
            yield from search_beams(decoder, logits_BV, self.tokenizer, self.scores, self.interrupted)
        elif settings.search == "contrastive":
            yield from search_contrastive(decoder, logits_BV, self.tokenizer, self.interrupted)
        else:
            yield from draw_tokens(decoder, logits_BV, self.tokenizer, self.interrupted)
        decoder.close()
