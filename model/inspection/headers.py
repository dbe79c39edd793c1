"""What a checkpoint is, as a report: from headers alone, and from what reading every number told besides. No torch."""

import re
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

from model.checkpoint.checkpoint import Checkpoint, Piece
from model.checkpoint.files import FileHeader
from model.checkpoint.manifest import MANIFEST
from model.cuts import Weight
from model.inspection.families import family_of
from model.inspection.report import (
    MOST_RANKS,
    CopiesReport,
    DeepReport,
    FileReport,
    Inspection,
    RanksReport,
    TokenizerReport,
    WeightReport,
)
from model.params import Params
from model.split import split_of
from model.tokenizers.opening import find_tokenizer, open_tokenizer
from parallel.errors import RefusedError
from parallel.slices import Slice

EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"


def inspect_checkpoint(checkpoint: Checkpoint, deep: DeepReport | None = None) -> Inspection:
    """The report. `deep`: what `read_deeply` found, where every number was read."""
    params, weights = checkpoint.params, checkpoint.weights
    tied, tied_reason = _tied(checkpoint)
    if deep is not None and tied is None:
        tied, tied_reason = deep.tied, "told by all their numbers"
    meta = checkpoint.layout == "meta"
    return Inspection(
        folder=str(checkpoint.folder),
        layout=checkpoint.layout,
        family=family_of(params),
        parameters=sum(prod(weight.shape) for weight in weights if not (tied and weight.name == OUTPUT)),
        stored_parameters=_stored(checkpoint, weights),
        dim=params.dim,
        n_layers=params.n_layers,
        n_heads=params.n_heads,
        n_kv_heads=params.n_kv_heads,
        head_dim=params.head_dim,
        ffn_dim=params.ffn_dim,
        vocab_size=params.vocab_size,
        norm_eps=params.norm_eps,
        rope_theta=params.rope_theta,
        rope_scaling=params.rope_scaling,
        rope_reason=params.rope_reason,
        dtype=checkpoint.dtype,
        mp=checkpoint.mp,
        files=tuple(_file_report(header) for header in checkpoint.files),
        weights=_weight_reports(checkpoint, weights),
        ignored=_ignored(checkpoint),
        kv_copies=_kv_copies(checkpoint),
        tied=tied,
        tied_reason=tied_reason,
        shards_json=("agrees" if (checkpoint.folder / MANIFEST).exists() else "absent") if meta else None,
        copies=_copies(checkpoint, weights) if checkpoint.mp > 1 else None,
        tokenizer=_tokenizer(checkpoint.folder, params.vocab_size),
        ranks=rank_counts(params),
        notes=checkpoint.notes,
        deep=deep,
    )


def _file_report(header: FileHeader) -> FileReport:
    numbers: Counter[str] = Counter()
    for entry in header.tensors.values():
        numbers[entry.dtype] += prod(entry.shape)
    return FileReport(name=header.path.name, size_bytes=header.stamp.size, numbers=dict(numbers))


def _stored(checkpoint: Checkpoint, weights: Sequence[Weight]) -> int:
    """Numbers of the uncut model as the files hold it; what every shard holds whole counts once."""
    stored = 0
    for weight in weights:
        held = sum(piece.held.size for piece in checkpoint.pieces[weight.name])
        if not (checkpoint.tied and weight.name == OUTPUT):
            stored += prod(weight.shape_of(Slice(0, weight.length if weight.cut is None else held)))
    return stored


def _weight_reports(checkpoint: Checkpoint, weights: Sequence[Weight]) -> tuple[WeightReport, ...]:
    """A report for each kind of weight, in the order of the model."""
    kinds: dict[tuple[str, tuple[tuple[int, ...], ...]], list[Weight]] = {}
    for weight in weights:
        if not (checkpoint.tied and weight.name == OUTPUT):
            pieces = checkpoint.pieces[weight.name]
            name = re.sub(r"\.\d+\.", ".*.", pieces[0].entry.name)
            parts = tuple(weight.shape_of(piece.held) for piece in pieces)
            kinds.setdefault((name, parts), []).append(weight)
    reports = []
    for (name, parts), found in kinds.items():
        held = [piece for weight in found for piece in checkpoint.pieces[weight.name]]
        report = WeightReport(
            name=name,
            count=len(found),
            shape=found[0].shape,
            cut=found[0].cut if checkpoint.mp > 1 else None,
            parts=parts,
            dtypes=tuple(sorted({piece.entry.dtype for piece in held})),
            turned=held[0].turned > 0,
        )
        reports.append(report)
    return tuple(reports)


def _ignored(checkpoint: Checkpoint) -> tuple[str, ...]:
    used = {piece.entry.name for pieces in checkpoint.pieces.values() for piece in pieces}
    names = {name for header in checkpoint.files for name in header.tensors}
    return tuple(sorted(names - used))


def _kv_copies(checkpoint: Checkpoint) -> tuple[int, int]:
    head_dim = checkpoint.params.head_dim
    held = [piece.held for piece in checkpoint.pieces["layers.0.attention.wk.weight"]]
    heads = [Slice(head, head + 1) * head_dim for head in range(checkpoint.params.n_kv_heads)]
    holders = [sum(own.start <= head.start and head.stop <= own.stop for own in held) for head in heads]
    return min(holders), max(holders)


def _tied(checkpoint: Checkpoint) -> tuple[bool | None, str]:
    """Whether the output is the embedding, as far as headers tell, and how they do."""
    if checkpoint.tied:
        return True, "the files hold one of the two"
    if checkpoint.mp > 1 and checkpoint.embedding_dim != 0:
        return None, "the files cut the two along different dimensions"
    pairs = list(zip(checkpoint.pieces[EMBEDDING], checkpoint.pieces[OUTPUT], strict=True))
    if all(_place(one) == _place(other) for one, other in pairs):
        return True, "both are the same numbers of the same file"
    sums = [(one.entry.own_crc32, other.entry.own_crc32) for one, other in pairs]
    if any(None in pair for pair in sums):
        return None, "the files have no checksums of the two"
    if all(one == other for one, other in sums):
        return True, "stored twice, with equal CRC-32"
    return False, "their CRC-32 differ"


def _place(piece: Piece) -> tuple[Path, int]:
    return piece.header.path, piece.entry.start


def _copies(checkpoint: Checkpoint, weights: Sequence[Weight]) -> CopiesReport:
    whole = [checkpoint.pieces[weight.name] for weight in weights if weight.cut is None]
    sums = [{piece.entry.own_crc32 for piece in pieces} for pieces in whole]
    if any(None in found for found in sums):
        return CopiesReport(tensors=len(whole), equal=None)
    return CopiesReport(tensors=len(whole), equal=all(len(found) == 1 for found in sums))


def _tokenizer(folder: Path, rows: int) -> TokenizerReport | None:
    """The folder's tokenizer; None where there is none. What is wrong with it is told, not raised."""
    path = find_tokenizer(folder)
    if path is None:
        return None
    kind, pieces, problem = None, None, None
    try:
        tokenizer = open_tokenizer(path)
        kind, pieces = tokenizer.kind, tokenizer.n_words
        tokenizer.check_vocabulary(rows)
    except RefusedError as error:
        problem = str(error)
    return TokenizerReport(path=str(path), kind=kind, pieces=pieces, matches=problem is None, problem=problem)


def rank_counts(params: Params) -> RanksReport:
    """How the model is cut for each number of ranks; beyond those that are named it cannot be."""
    even: list[int] = []
    repeated: list[int] = []
    uneven: list[int] = []
    for mp in range(1, min(MOST_RANKS, params.n_heads) + 1):
        try:
            split = split_of(params, mp)
        except RefusedError:
            break
        where = uneven if not split.meta else even if split.kv_copies == 1 else repeated
        where.append(mp)
    return RanksReport(even=tuple(even), repeated=tuple(repeated), uneven=tuple(uneven))
