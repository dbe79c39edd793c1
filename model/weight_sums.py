"""Checksums of this rank's weights, to find those that are no longer what was loaded."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import Transformer
from parallel import Mesh, RankFailedError, World
from parallel.collectives import all_gather_first_dim

# The wider, the faster they are added up.
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
# A block is added up along its rows and along its columns while it is in the cache of a CPU.
_CACHED_WORDS = 2**18
# A whole damaged module would name hundreds.
_SHOWN = 3


class WeightSums:
    """The checksums of a model's weights at the time when this was made."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.sums = _sums_of(model)

    def changed(self) -> list[str]:
        """The names of this rank's weights that are not what they were."""
        return [name for name, found in _sums_of(self.model).items() if found != self.sums[name]]

    def check(self, world: World) -> None:
        """RankFailedError, the same on every rank, names the rank and its weights that have changed. Collective."""
        found = [
            f"rank {rank}: {told} not what was loaded"
            for rank, told in enumerate(_told_by_all(_listed(self.changed()), world.mesh, self.model.device))
            if told
        ]
        if found:
            raise RankFailedError(
                f"{'; '.join(found)}: the memory of that rank is damaged, or its files were written over while the "
                "model runs from them; what was generated since the last check may be wrong: start again, and without "
                "that machine where this comes back"
            )


def _sums_of(model: Transformer) -> dict[str, bytes]:
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    threads = torch.get_num_threads()
    if threads == 1 or model.device.type != "cpu":
        return {name: checksum(weight) for name, weight in weights.items()}
    # A weight a thread: blocks are so small that threads within one would mostly wait for each other.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return dict(zip(weights, pool.map(checksum, weights.values()), strict=True))
        finally:
            torch.set_num_threads(threads)


def checksum(x: Tensor) -> bytes:
    """Of the bits of a tensor: a hash of the sums of its rows and of its columns, modulo 2**64.

    The sums are taken where the tensor is, at the pace of its memory; they alone come to the host. A changed number
    changes the sum of its row, and numbers of one row that outweigh each other do not do so in their columns.
    """
    words = _widest_words(x)
    words_RC = words.view(max(1, gcd(len(x), len(words))), -1) if x.dim() > 1 else words.unsqueeze(0)
    block_words = _CACHED_WORDS if x.device.type == "cpu" else len(words)
    rows, columns_C = [], torch.zeros(words_RC.shape[1], dtype=torch.int64, device=x.device)
    for block_RC in torch.split(words_RC, max(1, block_words // max(1, len(columns_C)))):
        rows.append(block_RC.sum(1, dtype=torch.int64))
        columns_C += block_RC.sum(0, dtype=torch.int64)
    return hashlib.sha256(torch.cat([*rows, columns_C]).cpu().numpy().tobytes()).digest()


def _widest_words(x: Tensor) -> Tensor:
    """The bits of `x` as whole numbers [n]."""
    flat = x.contiguous().flatten()
    start, nbytes = flat.storage_offset() * flat.element_size(), flat.numel() * flat.element_size()
    return flat.view(_WORDS[gcd(start, nbytes, 8)])


def _listed(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more weights" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


def _told_by_all(text: str, mesh: Mesh, device: torch.device) -> list[str]:
    """Every rank's text, in order of rank. Collective."""
    own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    sizes = all_gather_first_dim(torch.tensor([len(own)], device=device), mesh).tolist()
    if not any(sizes):
        return [""] * len(sizes)
    padded = F.pad(own, (0, max(sizes) - len(own)))
    rows = all_gather_first_dim(padded.unsqueeze(0), mesh).cpu()
    return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]
