"""The model over one batch: a prefill of all prompts, then passes over a new token (or several rivals) a row.

Every rank makes the same calls. What is decided is decided on rank 0 and broadcast, so ranks cannot drift
apart (docs/adr/0003-sample-once-and-broadcast.md); that they have not is looked at every few steps.

Shapes: B rows (answers), T tokens, K rivals, D model width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from model.capturing import make_step
from model.generation.agreement import Agreement, named_ranks
from model.generation.settings import Settings, prefill_tokens
from model.transformer import Transformer
from parallel import RankFailedError
from parallel.collectives import all_gather_first_dim, broadcast
from parallel.errors import PeerFailedError
from parallel.position import position

# Rank 0 broadcasts these in the place of every decision: the logits are not finite, or it has failed itself.
_SPOILT, _FAILED = -1, -2
_LOGIT_ROWS = 128


class Decoder:
    """A batch being decoded. `ids` are the tokens of each row so far, its prompt and what was generated.

    Rows are at first the prompts; `spread` makes several of each.
    """

    def __init__(
        self, model: Transformer, prompts: Sequence[Sequence[int]], settings: Settings, indices: Sequence[int]
    ) -> None:
        self.model = model
        self.settings = settings
        self.ids = [list(prompt) for prompt in prompts]
        # Which prompt of the whole run each row is, and how many tokens it may still get.
        self.indices = list(indices)
        self.room = [min(settings.max_gen_len, settings.max_seq_len - len(prompt)) for prompt in prompts]
        self.step = 0
        # The last layer's hidden states of the last pass [B, T, D], normalised.
        self.hidden_BTD = torch.empty(0)
        self._agreement = Agreement(model)

    @property
    def cache_tokens(self) -> int:
        """Places of the longest row: its prompt, its room, and one more (a row that has ended and is full still
        writes somewhere), or one more for each rival."""
        longest = max(len(prompt) + max(room, 0) for prompt, room in zip(self.ids, self.room, strict=True))
        return longest + (self.settings.top_k if self.settings.search == "contrastive" else 1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of this rank's KV cache for the batch, and of what a contrastive search keeps beside it on rank 0."""
        size = self.model.cache_bytes(len(self.ids) * self.settings.width, self.cache_tokens)
        if self.settings.search == "contrastive" and self.model.mesh.rank == 0:
            size += len(self.ids) * self.cache_tokens * self.model.params.dim * torch.float32.itemsize
        return size

    def prefill(self) -> Tensor:
        """Run all prompts, padded on the right; the logits behind each prompt's last token [B, V]. Collective.

        Causal attention never lets a token see the padding behind it, and decoding overwrites it. Long prompts go
        through in parts, so that what passes between layers stays small.
        """
        lengths, device = [len(prompt) for prompt in self.ids], self.model.device
        position.phase("prefilling", sum(lengths), "token")
        self.cache = self.model.new_cache(len(lengths), self.cache_tokens)
        padded = [prompt + [0] * (max(lengths) - len(prompt)) for prompt in self.ids]
        tokens_BT = torch.tensor(padded, device=device)
        self._run_step = make_step(self.model, self.cache)
        with self._agreement.watching(self.step):
            self.hidden_BTD = self._run_prompts(tokens_BT)
        self.cache.lengths = lengths
        last_BD = self.hidden_BTD[torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device) - 1]
        return self._logits(last_BD)

    def _run_prompts(self, tokens_BT: Tensor) -> Tensor:
        rows, longest = tokens_BT.shape
        each = prefill_tokens(rows)
        if longest <= each:
            return self.model(tokens_BT, self.cache)  # type: ignore[no-any-return]
        hidden_BTD = torch.empty(rows, longest, self.model.params.dim, dtype=self.model.dtype, device=tokens_BT.device)
        for start in range(0, longest, each):
            part_BT = tokens_BT[:, start : start + each]
            hidden_BTD[:, start : start + each] = self.model(part_BT, self.cache)
            self.cache.advance([part_BT.shape[1]] * rows)
            position.step(sum(min(len(prompt), start + each) for prompt in self.ids))
        return hidden_BTD

    def prompt_logprobs(self, firsts: Sequence[int] | None = None) -> list[list[float]]:
        """The logarithm of the probability of each prompt's tokens from place `firsts[row]`, 1 or more, on (default:
        of all but the first). After `prefill`. Collective.

        RankFailedError, on every rank, where the logits that they come from are not finite.
        """
        firsts = [1] * len(self.ids) if firsts is None else firsts
        return [self._row_logprobs(row, first) for row, first in enumerate(firsts)]

    def _row_logprobs(self, row: int, first: int) -> list[float]:
        prompt, values = self.ids[row], list[float]()
        # In pieces: all logits of a long prompt would take more memory than its cache.
        for start in range(first - 1, len(prompt) - 1, _LOGIT_ROWS):
            stop = min(start + _LOGIT_ROWS, len(prompt) - 1)
            logits_TV = self.model.logits(self.hidden_BTD[row, start:stop])
            values += logprobs_of(logits_TV, prompt[start + 1 : stop + 1])
            if not all(map(math.isfinite, values[start + 1 - first :])):
                raise self._spoilt(logits_TV, [row] * len(logits_TV))
        return values

    def spread(self, logits_BV: Tensor, copies: int) -> Tensor:
        """Make `copies` rows of each, beside each other; their logits."""
        if copies == 1:
            return logits_BV
        rows = [row for row in range(len(self.ids)) for _ in range(copies)]
        self._pick(rows)
        self.indices, self.room = [self.indices[row] for row in rows], [self.room[row] for row in rows]
        return logits_BV[rows]

    def advance(self, tokens: Sequence[int], running: Collection[int], parents: Sequence[int] | None = None) -> Tensor:
        """Put a token behind each row (that was `parents[row]` before); the logits behind it [B, V]. Collective.

        A row that is not in `running` has ended. It goes on idly in its last place, so that the batch keeps its shape.
        """
        if parents is not None:
            self._pick(parents)
        self._append(tokens, running)
        tokens_B1 = torch.tensor(tokens, device=self.model.device).unsqueeze(1)
        with self._agreement.watching(self.step) as watched:
            self.hidden_BTD = self._run_step(tokens_B1, watched)
        self.cache.advance([int(row in running) for row in range(len(tokens))])
        return self._logits(self.hidden_BTD[:, 0])

    def try_rivals(self, tokens_BK: Tensor) -> None:
        """Run K tokens that compete for each row's next place; their hidden states are in `hidden_BTD`. Collective."""
        with self._agreement.watching(self.step + 1):
            self.hidden_BTD = self.model(tokens_BK, self.cache, rivals=True)

    def take_rivals(self, tokens: Sequence[int], chosen: Sequence[int], running: Collection[int]) -> Tensor:
        """Take in one rival a row: rival `chosen[row]`, which is `tokens[row]`; the logits behind it. Collective."""
        self.cache.keep(chosen)
        self._append(tokens, running)
        self.cache.advance([int(row in running) for row in range(len(tokens))])
        rows = torch.arange(len(tokens), device=self.model.device)
        self.hidden_BTD = self.hidden_BTD[rows, torch.tensor(chosen, device=self.model.device)].unsqueeze(1)
        return self._logits(self.hidden_BTD[:, 0])

    def decide(self, logits_BV: Tensor, shape: tuple[int, ...], act: Callable[[], Tensor]) -> list[list[int]]:
        """What `act` says on rank 0 (whole numbers of 0 or more, of this shape), on every rank. Collective.

        RankFailedError, on every rank, where the logits that it decides by are not finite, and PeerFailedError on
        the others where rank 0 fails.
        """
        decided = torch.empty(shape, dtype=torch.long, device=logits_BV.device)
        if self.model.mesh.rank == 0:
            try:
                finite = logits_BV.isfinite().all()
                if not self.model.mesh.alone:
                    with position.waits_in("the step's collectives"):  # as below; inside `act` it would look like work
                        finite.item()
                # Told with the decision: asking for it alone would be another wait for the device.
                decided = act().to(decided).reshape(shape).masked_fill(~finite, _SPOILT)
            except Exception:
                if not logits_BV.isfinite().all():
                    return self._told(logits_BV, decided.fill_(_SPOILT))
                # Nobody should wait for a decision that does not come.
                with contextlib.suppress(RuntimeError):
                    broadcast(torch.full_like(decided, _FAILED), self.model.mesh)
                raise
        return self._told(logits_BV, decided.contiguous())

    def _told(self, logits_BV: Tensor, decided: Tensor) -> list[list[int]]:
        """Rank 0's `decided` on every rank. Collective."""
        decided = broadcast(decided, self.model.mesh)
        with position.waits_in("the step's collectives"):  # on a GPU they end only now
            found: list[list[int]] = decided.tolist()
        if found[0][0] == _SPOILT:
            raise self._spoilt(logits_BV, range(len(logits_BV)))
        if found[0][0] == _FAILED:
            raise PeerFailedError(f"rank 0 failed while it chose the tokens of step {self.step}; it knows why")
        return found

    def close(self) -> None:
        """The batch has ended: compare the ranks once more. Collective."""
        self._agreement.close(self.step, self.ids)

    def _pick(self, rows: Sequence[int]) -> None:
        self.cache.select(rows)
        self.ids = [list(self.ids[row]) for row in rows]

    def _append(self, tokens: Sequence[int], running: Collection[int]) -> None:
        if self.step == 0:
            position.phase("decoding")
        self.step += 1
        position.step(self.step)
        for row in running:
            self.ids[row].append(tokens[row])

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        logits_BV = self.model.logits(hidden_BD)
        self._agreement.compare(self.step, self.ids, logits_BV)
        return logits_BV

    def _spoilt(self, logits_BV: Tensor, rows: Sequence[int]) -> RankFailedError:
        """What to say of logits that are not finite; `rows`: of which row each are. Collective: all have seen it."""
        place = int((~logits_BV.isfinite()).any(-1).nonzero()[0])
        shares = [logits_BV[place, own.start : own.stop] for own in self.model.vocabulary]
        bad = [rank for rank, own in enumerate(shares) if not bool(own.isfinite().all())]
        spoilt_weights = torch.tensor(
            [not all(bool(weight.isfinite().all()) for weight in self.model.parameters())], device=self.model.device
        )
        ranks = all_gather_first_dim(spoilt_weights.int(), self.model.mesh).nonzero().flatten().tolist()
        hint = "float16 overflows on some models: try --dtype bfloat16 or float32"
        if ranks:
            where, hint = f"{named_ranks(ranks)}, whose weights are not finite", "they were when loaded: start again"
        else:
            where = named_ranks(bad) + (", so of a layer before the last" if len(bad) > 1 else "")
        value = next(float(number) for number in logits_BV[place].tolist() if not math.isfinite(number))
        return RankFailedError(
            f"the logits of prompt {self.indices[rows[place]]} at step {self.step} are not finite ({value} from "
            f"{where}); {hint}"
        )


def logprobs_of(logits_BV: Tensor, tokens: Sequence[int]) -> list[float]:
    """The natural logarithm of the probability of each row's token."""
    ids_B1 = torch.tensor(tokens, device=logits_BV.device).unsqueeze(-1)
    values: list[float] = logits_BV.log_softmax(-1).gather(-1, ids_B1).squeeze(-1).tolist()
    return values


def likeliest_of(logits_BV: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The `count` likeliest tokens of each row with their log-probabilities, the likeliest first."""
    values, ids = logits_BV.log_softmax(-1).topk(min(count, logits_BV.shape[-1]), -1)
    return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
