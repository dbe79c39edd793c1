"""Whether the ranks still agree: what should be the same on all is compared every few steps.

What comes out of a collective is the same on every rank, so a fault of one rank hardly shows in the logits. It shows
in what each rank holds or works out for itself: its tokens, the norms' weights and outputs, the rotary table.
docs/adr/0012-ranks-are-compared.md
"""

import logging
import platform
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.digest import digests
from model.norm import RMSNorm
from model.transformer import Transformer
from parallel import RankFailedError
from parallel.collectives import all_gather_first_dim
from parallel.kernels.building import fingerprint

log = logging.getLogger("shardrun")

# So rare that it costs less than 1 % of decoding on the smallest models too, and so often that a fault spoils no
# more than the tokens of so many steps.
EVERY_STEPS = 64
# In the place of a token, where a row has none.
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class _Part:
    """Something that should be the same on all ranks. `computed`: to the bit only by processors of one kind."""

    what: str
    digest: Tensor
    computed: bool = False


class Agreement:
    """Compares, over the ranks of one batch, the tokens and what each layer makes of them.

    All methods do nothing where a rank is alone.
    """

    def __init__(self, model: Transformer, every: int = EVERY_STEPS) -> None:
        self.model = model
        self.every = every
        self._norms = {name: module for name, module in model.named_modules() if isinstance(module, RMSNorm)}
        self._outputs: dict[str, Tensor] = {}
        self._prompt_lengths: list[int] = []

    @contextmanager
    def watching(self, step: int) -> Iterator[bool]:
        """Note what the norms put out in the body, where `compare(step)` will ask for it; whether it will."""
        if not self._due(step):
            yield False
            return
        self._outputs = {}
        hooks = [norm.register_forward_hook(partial(self._note, name)) for name, norm in self._norms.items()]
        try:
            yield True
        finally:
            for hook in hooks:
                hook.remove()

    def compare(self, step: int, ids: Sequence[Sequence[int]], logits_BV: Tensor) -> None:
        """RankFailedError, the same on every rank, where ranks differ. Collective at each `every`-th step from 0."""
        if step == 0:
            self._prompt_lengths = [len(row) for row in ids]
        if self._due(step):
            logits = [_Part(f"the logits of row {row}", one) for row, one in enumerate(digests(logits_BV).unbind())]
            self._require_alike(step, ids, [*self._layers(self._outputs), *logits])

    def close(self, step: int, ids: Sequence[Sequence[int]]) -> None:
        """The batch has ended after `step`: compare what has not been compared since. Collective."""
        if not self.model.mesh.alone and not self._due(step):
            self._require_alike(step, ids, self._layers({}))

    def _due(self, step: int) -> bool:
        return not self.model.mesh.alone and step % self.every == 0

    def _note(self, name: str, _norm: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        # A norm treats all places alike: the last tells as much as a whole prompt, and costs nothing beside it.
        # A copy, or it would keep the rest in memory.
        self._outputs[name] = outputs[1][:, -1].clone()

    def _layers(self, outputs: dict[str, Tensor]) -> list[_Part]:
        """What the ranks hold and work out for themselves, in the order in which it is used."""
        turns_Sh2 = torch.view_as_real(self.model.turns(0))
        weights = digests(torch.stack([norm.weight for norm in self._norms.values()])).unbind()
        found = digests(torch.stack(list(outputs.values()))).unbind() if outputs else ()
        noted = dict(zip(outputs, found, strict=True))
        parts = [_Part("the rotary table", digests(turns_Sh2.unsqueeze(0))[0], computed=True)]
        for name, weight in zip(self._norms, weights, strict=True):
            parts.append(_Part(f"{name}.weight", weight))
            if name in noted:
                parts.append(_Part(f"the output of {name}", noted[name], computed=True))
        return parts

    def _require_alike(self, step: int, ids: Sequence[Sequence[int]], parts: list[_Part]) -> None:
        lengths_and_tokens = [*map(len, ids), *(token for row in ids for token in row)]
        tokens = torch.tensor([lengths_and_tokens], dtype=torch.int32, device=self.model.device)
        parts = [_Part("the tokens", digests(tokens)[0]), *parts]
        kind = tokens.new_tensor(_kind_of(self.model.device), dtype=torch.int64)
        own = torch.stack([kind, *(part.digest for part in parts)])
        kinds, *columns = zip(*all_gather_first_dim(own.unsqueeze(0), self.model.mesh).tolist(), strict=True)
        alike = len(set(kinds)) == 1
        if not alike and step == 0:
            log.info("ranks run on processors of several kinds: what these may round apart is not compared")
        for part, column in zip(parts, columns, strict=True):
            if len(set(column)) > 1 and (alike or not part.computed):
                # All ranks come here: they see the same table.
                where = self._first_token(ids) if part is parts[0] else None
                raise _disagreement(step, where or part.what, column)

    def _first_token(self, ids: Sequence[Sequence[int]]) -> str | None:
        """The first token that differs, in the order in which they were chosen. Collective."""
        mesh, device = self.model.mesh, self.model.device
        longest = torch.tensor([max(map(len, ids))], device=device)
        width = int(all_gather_first_dim(longest, mesh).max())
        padded = [[*row, *[_NO_TOKEN] * (width - len(row))] for row in ids]
        everyone = all_gather_first_dim(torch.tensor([padded], device=device), mesh)
        unlike = [(place - self._prompt_length(row, len(ids)), row, place) for row, place in _unlike(everyone)]
        if not unlike:
            return None
        step, row, place = min(unlike)
        tokens = everyone[:, row, place].tolist()
        where = f"token {place} of the prompt" if step < 0 else f"the token chosen at step {step}"
        said = "; ".join(f"{_token(tokens[own[0]])} on {named_ranks(own)}" for own in _groups(tokens))
        return f"{where} of row {row} ({said})"

    def _prompt_length(self, row: int, rows: int) -> int:
        # Rows of one prompt stand beside each other, as many for each.
        return self._prompt_lengths[row * len(self._prompt_lengths) // rows]


def _unlike(x_RBT: Tensor) -> list[list[int]]:
    """Row and place of the numbers that are not the same on all ranks."""
    found: list[list[int]] = (x_RBT != x_RBT[0]).any(0).nonzero().tolist()
    return found


def _kind_of(device: torch.device) -> int:
    """Processors of one kind round alike; on others, kernels may add up in another order."""
    on_cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {fingerprint()}"
    return zlib.crc32((torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu).encode())


def _disagreement(step: int, what: str, seen: Sequence[int]) -> RankFailedError:
    most, *others = _groups(seen)
    if len(most) == 1:
        who = f"{named_ranks(range(len(seen)))} differ"
    else:
        odd = sorted(rank for group in others for rank in group)
        who = f"{named_ranks(odd)} {'differs' if len(odd) == 1 else 'differ'} from {named_ranks(most)}"
    return RankFailedError(
        f"the ranks no longer agree at step {step}: {who}, first in {what}; the memory or the processor of a rank that "
        "differs may be damaged: start again, and without its machine where that comes back (--check_weights also "
        "watches the weights that are cut)"
    )


def _groups(seen: Sequence[int]) -> list[list[int]]:
    """The ranks that have the same, the largest group first."""
    groups: dict[int, list[int]] = {}
    for rank, value in enumerate(seen):
        groups.setdefault(value, []).append(rank)
    return sorted(groups.values(), key=len, reverse=True)


def named_ranks(ranks: Sequence[int]) -> str:
    """'rank 1' or 'ranks 0, 2 and 3': how ranks stand in a sentence."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _token(token: int) -> str:
    return "none" if token == _NO_TOKEN else str(token)
