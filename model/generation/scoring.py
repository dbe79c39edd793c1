"""How likely a text of any length is: windows of it go through the prefill of generation, each token scored once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model.generation.decoder import Decoder
from model.generation.settings import Settings
from model.generation.windows import Window, choose_stride, windows_of
from model.transformer import Transformer
from parallel.errors import RefusedError

# Called with the tokens scored so far, and all that are to be.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What was found. `logprobs`: natural logarithms, of each token but the first, which nothing stands before."""

    tokens: list[int]
    logprobs: list[float]
    window_tokens: int
    stride: int
    windows: int

    @property
    def scored_tokens(self) -> int:
        return len(self.logprobs)

    @property
    def nats(self) -> float:
        """The negative logarithm of the probability of all scored tokens, summed in float64."""
        return -math.fsum(self.logprobs)

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.scored_tokens

    @property
    def perplexity(self) -> float:
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, text_bytes: int) -> float:
        """Bits that each byte of the text takes: what models with other tokenizers can be compared by."""
        return self.nats / math.log(2) / text_bytes


class Scoring:
    """A text to be scored. Every rank makes one, with the same arguments, and calls `run`."""

    def __init__(
        self,
        model: Transformer,
        tokens: Sequence[int],
        max_seq_len: int,
        max_batch_size: int,
        stride: int | None = None,
    ) -> None:
        """`tokens`: ids of the whole text, bos in front. RefusedError where there is nothing to score."""
        if len(tokens) < 2:
            raise RefusedError(
                f"the text has {len(tokens)} token{'' if len(tokens) == 1 else 's'}; the first (bos) is not scored, "
                "others stand behind it: wanted 2 or more"
            )
        self.model = model
        self.tokens = list(tokens)
        self.stride = choose_stride(stride, max_seq_len)
        self.settings = Settings(max_gen_len=1, max_seq_len=max_seq_len)
        windows = windows_of(len(tokens), max_seq_len, self.stride)
        self.batches = [windows[at : at + max_batch_size] for at in range(0, len(windows), max_batch_size)]

    @property
    def cache_bytes(self) -> int:
        """Bytes of this rank's KV cache for a batch of windows."""
        return self._decoder(self.batches[0]).cache_bytes

    @torch.inference_mode()
    def run(self, progress: Progress | None = None) -> Score:
        """Score every token. Collective. RankFailedError, on every rank, where logits are not finite."""
        logprobs: list[float] = []
        for batch in self.batches:
            logprobs += self._score(batch)
            if progress is not None:
                progress(len(logprobs), len(self.tokens) - 1)
        assert len(logprobs) == len(self.tokens) - 1
        return Score(
            tokens=self.tokens,
            logprobs=logprobs,
            window_tokens=self.settings.max_seq_len,
            stride=self.stride,
            windows=sum(map(len, self.batches)),
        )

    def _score(self, batch: Sequence[Window]) -> list[float]:
        # A decoder a batch, so that its cache is given back before the next one is made.
        decoder = self._decoder(batch)
        decoder.prefill()
        rows = decoder.prompt_logprobs([window.first - window.start for window in batch])
        return [value for row in rows for value in row]

    def _decoder(self, batch: Sequence[Window]) -> Decoder:
        prompts = [self.tokens[window.start : window.stop] for window in batch]
        # To whoever reads an error all windows are of the one text, prompt 0.
        return Decoder(self.model, prompts, self.settings, [0] * len(batch))
