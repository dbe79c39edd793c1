"""Generation: one prefill of all prompts, then a token a step, chosen on rank 0 and broadcast.

Every rank runs this with the same prompts and settings; no rank trusts its own sampling, so ranks
cannot drift apart (docs/adr/0003-sample-once-and-broadcast.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.cache import KVCache, cache_bytes
from model.sampling import choose, uniform
from model.transformer import Transformer
from parallel import RankFailedError, RefusedError
from parallel.collectives import broadcast

FinishReason = Literal["stop", "length"]
MAX_TEMPERATURE = 10.0
# Rank 0 broadcasts this in a token's place when the logits are not finite.
_SPOILT = -1
_LOGIT_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to generate; the same for all rows of a batch."""

    max_gen_len: int
    max_seq_len: int
    temperature: float
    top_p: float
    seed: int
    logprobs: bool = False
    # Also compute the prompt's log-probabilities.
    echo: bool = False
    eos_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise RefusedError(
                f"temperature is {self.temperature}; wanted a number of 0 (greedy) to {MAX_TEMPERATURE:g}"
            )
        if not 0 <= self.top_p <= 1:
            raise RefusedError(f"top_p is {self.top_p}; wanted a number of 0 (the likeliest token) to 1 (no filter)")
        if self.max_gen_len < 1:
            raise RefusedError(f"max_gen_len is {self.max_gen_len}; wanted 1 or more tokens")


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to one row: a token (None where the end token came), and the end where it ended."""

    row: int
    token: int | None
    logprob: float | None
    finish_reason: FinishReason | None


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, max_seq_len: int) -> None:
    """RefusedError names the first prompt that cannot be run, and why."""
    if not prompts:
        raise RefusedError("no prompts were given (an empty list); give one prompt or more")
    for index, prompt in enumerate(prompts):
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


class Generation:
    """One batch being generated. Iterate `events()`; then `prompt_logprobs` holds what `echo` asked for."""

    def __init__(
        self, model: Transformer, prompts: Sequence[Sequence[int]], settings: Settings, indices: Sequence[int]
    ) -> None:
        self.model = model
        self.prompts = [list(prompt) for prompt in prompts]
        self.settings = settings
        # Which prompt of the whole run each row is: decides its random numbers.
        self.indices = list(indices)
        self.room = [min(settings.max_gen_len, settings.max_seq_len - len(prompt)) for prompt in self.prompts]
        self.prompt_logprobs: list[list[float]] = []

    @property
    def cache_tokens(self) -> int:
        """Places of the longest row, its prompt and its room, and one more: a row that has ended and is full
        still writes somewhere."""
        return 1 + max(len(prompt) + max(room, 0) for prompt, room in zip(self.prompts, self.room, strict=True))

    @property
    def cache_bytes(self) -> int:
        """Bytes of this rank's KV cache for the batch."""
        model = self.model
        return cache_bytes(model.params, model.mesh, len(self.prompts), self.cache_tokens, model.output.weight.dtype)

    @torch.inference_mode()
    def events(self) -> Iterator[Event]:
        """The events of each step, row by row. Collective: every rank must iterate to the end."""
        running = {row for row, room in enumerate(self.room) if room > 0}
        yield from (Event(row, None, None, "length") for row, room in enumerate(self.room) if room <= 0)
        longest = max(map(len, self.prompts))
        if not running and not self.settings.echo:
            return
        cache = self._new_cache()
        logits_BV = self._prefill(cache, longest)
        step = 0
        while running:
            tokens_B = self._choose(logits_BV, step)
            chosen = tokens_B.tolist()
            if chosen[0] == _SPOILT:
                raise self._spoilt(logits_BV, step)
            logprobs = self._logprobs(logits_BV, tokens_B)
            step += 1
            for row in sorted(running):
                event = self._event(row, chosen[row], None if logprobs is None else logprobs[row], step)
                if event.finish_reason is not None:
                    running.discard(row)
                yield event
            if running:
                # A row that has ended goes on idly in its last place, so that the batch keeps its shape.
                hidden_B1D = self.model(tokens_B.unsqueeze(1), cache)
                cache.advance([int(row in running) for row in range(len(chosen))])
                logits_BV = self.model.logits(hidden_B1D[:, 0])

    def _event(self, row: int, token: int, logprob: float | None, step: int) -> Event:
        if token in self.settings.eos_ids:
            return Event(row, None, None, "stop")
        return Event(row, token, logprob, "length" if step >= self.room[row] else None)

    def _new_cache(self) -> KVCache:
        model, weight = self.model, self.model.output.weight
        return KVCache(model.params, model.mesh, len(self.prompts), self.cache_tokens, weight.dtype, weight.device)

    def _prefill(self, cache: KVCache, longest: int) -> Tensor:
        """Run all prompts at once, padded on the right; the logits behind each prompt's last token [B, V].

        Causal attention never lets a token see the padding behind it, and decoding overwrites it.
        """
        device = self.model.output.weight.device
        padded = [prompt + [0] * (longest - len(prompt)) for prompt in self.prompts]
        hidden_BTD = self.model(torch.tensor(padded, device=device), cache)
        lengths = [len(prompt) for prompt in self.prompts]
        cache.advance(lengths)
        if self.settings.logprobs and self.settings.echo:
            for row, prompt in enumerate(self.prompts):
                self.prompt_logprobs.append(self._prompt_logprobs(hidden_BTD[row], prompt))
        last_BD = hidden_BTD[torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device) - 1]
        return self.model.logits(last_BD)

    def _prompt_logprobs(self, hidden_TD: Tensor, prompt: Sequence[int]) -> list[float]:
        """The logarithm of each token's probability but the first's. Collective."""
        values: list[float] = []
        # In pieces: all logits of a long prompt would take more memory than its cache.
        for start in range(0, len(prompt) - 1, _LOGIT_ROWS):
            stop = min(start + _LOGIT_ROWS, len(prompt) - 1)
            targets = torch.tensor(prompt[start + 1 : stop + 1], device=hidden_TD.device).unsqueeze(-1)
            logits_TV = self.model.logits(hidden_TD[start:stop])
            values += logits_TV.log_softmax(-1).gather(-1, targets).squeeze(-1).tolist()
        return values

    def _choose(self, logits_BV: Tensor, step: int) -> Tensor:
        """The next token of each row [B], chosen on rank 0. Collective."""
        mesh = self.model.mesh
        tokens_B = torch.empty(len(self.prompts), dtype=torch.long, device=logits_BV.device)
        if mesh.rank == 0:
            settings = self.settings
            draws = [uniform(settings.seed, index, step) for index in self.indices]
            tokens_B = choose(logits_BV, settings.temperature, settings.top_p, draws)
            # A NaN makes the whole sum NaN; an infinity alone would be masked by a NaN-free softmax.
            if not bool(torch.isfinite(logits_BV.sum())):
                tokens_B = torch.full_like(tokens_B, _SPOILT)
        return broadcast(tokens_B.contiguous(), mesh)

    def _spoilt(self, logits_BV: Tensor, step: int) -> RankFailedError:
        row, column = torch.nonzero(~torch.isfinite(logits_BV))[0].tolist()
        rank = next(r for r, own in enumerate(self.model.vocabulary) if own.start <= column < own.stop)
        return RankFailedError(
            f"the logits of prompt {self.indices[row]} at step {step} are not finite "
            f"({logits_BV[row, column].item()} from rank {rank}); "
            "float16 overflows on some models: try --dtype bfloat16 or float32"
        )

    def _logprobs(self, logits_BV: Tensor, tokens_B: Tensor) -> list[float] | None:
        if not self.settings.logprobs:
            return None
        values: list[float] = logits_BV.log_softmax(-1).gather(-1, tokens_B.unsqueeze(-1)).squeeze(-1).tolist()
        return values
