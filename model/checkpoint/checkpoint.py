"""What a folder holds, whatever its layout: sizes, and where in its files each part of each weight stands.

No torch: a checkpoint is looked at, and its faults told, before torch is loaded.
"""

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.checkpoint.files import FileHeader, TensorEntry, open_regular
from model.cuts import Weight, all_weights
from model.params import Params
from model.split import Split, check_ranks, split_of
from parallel.errors import RefusedError
from parallel.slices import Slice, cover

Layout = Literal["meta", "hf", "gguf"]
_SAMPLE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an uncut weight as a file holds it: `held` along the weight's cut (its first dimension, where
    it is not cut). `turned`: numbers a head, where the rows stand in Hugging Face's rotary order; else 0."""

    header: FileHeader
    entry: TensorEntry
    held: Slice
    turned: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder, looked at and found sound as far as headers tell.

    `params` are the uncut model's, each KV head counted once however often the files hold it. `mp`: files
    that a weight is spread over (1 for layouts that do not cut). `pieces[name]`: in order of the files.
    """

    folder: Path
    layout: Layout
    params: Params
    files: tuple[FileHeader, ...]
    pieces: dict[str, tuple[Piece, ...]]
    mp: int
    embedding_dim: int
    dtype: str
    notes: tuple[str, ...] = ()
    # output.weight is not in the files: it is tok_embeddings.weight.
    tied: bool = False

    @property
    def weights(self) -> list[Weight]:
        return all_weights(self.params, self.embedding_dim)

    def with_embedding_dim(self, embedding_dim: int) -> "Checkpoint":
        """The same, its embedding to be cut along `embedding_dim`: only where the files hold it whole."""
        assert self.mp == 1
        name = "tok_embeddings.weight"
        piece = self.pieces[name][0]
        whole = replace(piece, held=Slice(0, piece.entry.shape[embedding_dim]))
        return replace(self, embedding_dim=embedding_dim, pieces={**self.pieces, name: (whole,)})

    def split(self, ranks: int) -> Split:
        """Who owns what at `ranks` ranks. RefusedError where no cut exists."""
        return split_of(self.params, ranks)

    def preferred(self, rank: int, ranks: int) -> int:
        """The file from which rank `rank` of `ranks` takes what several hold: its own, where there is one a rank."""
        return rank if self.mp == ranks else 0

    def sources(self, weight: Weight, own: Slice, prefer: int = 0) -> list[tuple[Piece, Slice]]:
        """Which pieces give which parts of `own`, in order. `prefer`: the file to take what several hold from."""
        pieces = self.pieces[weight.name]
        held = [piece.held for piece in pieces]
        return [(pieces[index], part) for index, part in cover(own, held, prefer)]

    def fingerprint(self) -> dict[str, object]:
        """What must be the same on every rank: sizes, and what the headers say of every tensor of every file."""
        sums = [
            [(name, entry.dtype, entry.shape, entry.crc32) for name, entry in sorted(header.tensors.items())]
            for header in self.files
        ]
        sizes = [header.stamp.size for header in self.files]
        digest = hashlib.sha256(
            json.dumps([sums, sizes, [_samples(header) for header in self.files]]).encode()
        ).hexdigest()
        return {"params.json": str(self.params), "the checkpoint's tensors": digest}

    def check_mp(self, ranks: int, strict: bool = False) -> str | None:
        """A note where the number of ranks is not the number of shards; RefusedError where that is not to be
        (`strict`) or no cut exists."""
        try:
            check_ranks(self.params, ranks)
        except RefusedError as error:
            raise RefusedError(f"{self.folder}: {error}") from None
        if self.layout != "meta" or ranks == self.mp:
            return None
        held = f"{self.folder}: holds {self.mp} shard{'s' if self.mp > 1 else ''} (MP {self.mp})"
        target = self.folder.resolve().parent / f"{self.folder.resolve().name}-mp{ranks}"
        anew = f"shardrun reshard {shlex.quote(str(self.folder))} {shlex.quote(str(target))} --mp {ranks}"
        if strict:
            raise RefusedError(
                f"{held} but {ranks} rank{'s were' if ranks > 1 else ' was'} started (world size {ranks}); start "
                f"{self.mp}: --nproc_per_node {self.mp} (torchrun: --nproc-per-node {self.mp}), or cut it anew: "
                f"{anew}, or drop --strict_mp"
            )
        even = "" if self.split(ranks).even else "; the cut is uneven, and the fullest rank sets the speed"
        return f"{held}; {ranks} rank{'s' if ranks > 1 else ''} cut it anew while loading (once for all: {anew}){even}"


def _samples(header: FileHeader) -> str:
    """A digest of some bytes of each tensor that has no checksum: two models of one shape differ in them."""
    found = hashlib.sha256()
    with open_regular(header.path) as file:
        for entry in header.tensors.values():
            if entry.crc32 is None:
                last = max(entry.record_start, entry.record_start + entry.record_bytes - _SAMPLE_BYTES)
                for start in (entry.record_start, (entry.record_start + last) // 2, last):
                    found.update(os.pread(file.fileno(), _SAMPLE_BYTES, start))
    return found.hexdigest()
