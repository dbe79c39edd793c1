"""A folder in Meta's layout: params.json, consolidated.00.pth and on, tokenizer.model. Headers only; no torch.

`open_meta_folder` answers, within milliseconds, whether the folder is what it should be, and what part of
which weight each file holds: as shards.json says where there is one, else as Meta cuts.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from model.checkpoint.checkpoint import Checkpoint, Piece
from model.checkpoint.files import FileHeader, main_dtype
from model.checkpoint.legacy import read_legacy_header
from model.checkpoint.manifest import MANIFEST, ListedShard, read_manifest
from model.checkpoint.params_json import read_params
from model.checkpoint.shard_checks import check_layers, check_not_copies, check_replicated, check_weights
from model.checkpoint.shard_list import list_shards
from model.checkpoint.torch_file import is_legacy, read_header
from model.cuts import Weight, all_weights
from model.params import Params
from model.split import split_of
from parallel.errors import RefusedError
from parallel.slices import Slice, even_share

Held = dict[str, tuple[Slice, ...]]


def open_meta_folder(folder: Path, allow_legacy: bool = False) -> Checkpoint:
    """Read and check a folder's headers. RefusedError says what is wrong with it, and where.

    `allow_legacy`: read bare-pickle files of torch before 1.6 too (their weights only, never code).
    """
    files, notes = list_shards(folder)
    params = read_params(folder / "params.json")
    headers = [read_legacy_header(path) if allow_legacy and is_legacy(path) else read_header(path) for path in files]
    if any(header.nested for header in headers):
        notes.append(f"{folder}: the weights stand nested under 'model'; read as what they are")
    check_not_copies(headers)
    listed = read_manifest(folder, headers)
    if listed is None and len(headers) > 1:
        notes.append(f"{folder}: has no {MANIFEST}, so swapped shards could not be told (Meta's files carry no rank)")
    slices = _listed_slices(listed)
    params = _with_vocabulary(folder, params, headers, slices)
    embedding_dim = _embedding_dim(params, headers, slices)
    check_layers(folder, params, headers[0])
    if slices is None:
        params = replace(params, n_kv_heads=params.n_kv_heads // kv_copies(params, headers))
        weights = all_weights(params, embedding_dim)
        held = _metas_slices(folder, params, weights, len(headers))
    else:
        params = _with_listed_kv_heads(folder, params, slices, len(headers))
        weights = all_weights(params, embedding_dim)
        held = _whole_slices(folder, params, weights, slices, len(headers))
    for header in headers:
        check_weights(header, params, weights, headers, held)
    check_replicated(weights, headers)
    pieces = {weight.name: _pieces(weight, headers, held[weight.name]) for weight in weights}
    for name, found in pieces.items():
        _check_copies(folder, params, name, found)
    return Checkpoint(
        folder=folder,
        layout="meta",
        params=params,
        files=tuple(headers),
        pieces=pieces,
        mp=len(headers),
        embedding_dim=embedding_dim,
        dtype=main_dtype(folder, headers, notes),
        notes=tuple(notes),
    )


def _pieces(weight: Weight, headers: Sequence[FileHeader], held: Sequence[Slice]) -> tuple[Piece, ...]:
    return tuple(Piece(header, header.tensors[weight.name], own) for header, own in zip(headers, held, strict=True))


def _check_copies(folder: Path, params: Params, name: str, pieces: Sequence[Piece]) -> None:
    """KV heads that stand in several shards are equal there, as far as checksums of whole tensors tell."""
    for piece, other in pairwise(pieces):
        sums = (piece.entry.own_crc32, other.entry.own_crc32)
        if ".attention.w" in name and piece.held == other.held and None not in sums and sums[0] != sums[1]:
            raise RefusedError(
                f"{folder / 'params.json'}: n_kv_heads is {params.n_kv_heads}, so {len(pieces)} shards hold KV heads "
                f"several times, but {name} differs between {piece.header.path.name} and {other.header.path.name}; "
                "params.json and the shards are of different models"
            )


def _listed_slices(listed: list[ListedShard] | None) -> Held | None:
    """What each shard holds of each cut weight, as shards.json says; None where it does not."""
    if listed is None or any(shard.slices is None for shard in listed):
        return None
    tables = [shard.slices or {} for shard in listed]
    return {name: tuple(table[name] for table in tables if name in table) for name in tables[0]}


def _with_vocabulary(folder: Path, params: Params, headers: Sequence[FileHeader], slices: Held | None) -> Params:
    """vocab_size from params.json, or from the output layer's rows where the file leaves it open."""
    entries = [header.tensors.get("output.weight") for header in headers]
    if any(entry is None or len(entry.shape) != 2 for entry in entries):
        return params
    shapes = [entry.shape for entry in entries if entry is not None]
    rows = shapes[0][0] * len(shapes) if slices is None else sum(shape[0] for shape in shapes)
    if params.vocab_size not in (-1, rows):
        if slices is None and len({shape[0] for shape in shapes}) > 1:
            raise RefusedError(
                f"{folder}: its shards are cut unevenly, which only {MANIFEST} could describe, and there is none; get "
                "that file too, or the checkpoint as it was before it was cut"
            )
        raise RefusedError(
            f"{folder / 'params.json'}: vocab_size is {params.vocab_size}, but output.weight of "
            f"{headers[0].path.name} has {shapes[0][0]} rows ({rows} over {len(headers)} "
            f"shard{'s' if len(headers) > 1 else ''}); correct it, or write -1"
        )
    return params.with_vocab_size(rows)


def _embedding_dim(params: Params, headers: Sequence[FileHeader], slices: Held | None) -> int:
    """Along which dimension tok_embeddings is cut, read off its shape (families differ, and so do exports).

    A single file holds it whole: then what shards.json says, else 1.
    """
    entry = headers[0].tensors.get("tok_embeddings.weight")
    if entry is None:
        return 1
    if len(headers) > 1:
        return 0 if entry.shape[1:] == (params.dim,) else 1
    listed = (slices or {}).get("tok_embeddings.weight", ())
    return 0 if listed == (Slice(0, entry.shape[0]),) else 1


def kv_copies(params: Params, headers: Sequence[FileHeader]) -> int:
    """How many neighbouring shards hold each KV head, told by the checksums of wk and wv (405B's MP16 files: 2).

    Only where each shard holds one head: so Meta writes them. RefusedError where the copies of most layers
    are equal and those of some are not.
    """
    shards = len(headers)
    if params.n_kv_heads != shards or shards == 1:
        return 1
    names = [f"layers.{n}.attention.{part}.weight" for n in range(params.n_layers) for part in ("wk", "wv")]
    sums = {name: [_checksum(header, name) for header in headers] for name in names}
    for copies in sorted((n for n in range(2, shards + 1) if shards % n == 0), reverse=True):
        odd = [name for name, found in sums.items() if not _copied(found, copies)]
        if not odd:
            return copies
        if 2 * len(odd) < len(names):
            raise RefusedError(
                f"{headers[0].path.parent}: the shards hold each KV head {copies} times, but the copies of {odd[0]} "
                f"differ ({len(odd)} of {len(names)} such weights); a shard is damaged or of another model: get them "
                "again"
            )
    return 1


def _checksum(header: FileHeader, name: str) -> int | None:
    entry = header.tensors.get(name)
    return None if entry is None else entry.own_crc32


def _copied(sums: Sequence[int | None], copies: int) -> bool:
    """True where each group of `copies` neighbours has the same checksum."""
    return None not in sums and all(found == sums[i // copies * copies] for i, found in enumerate(sums))


def _metas_slices(folder: Path, params: Params, weights: Sequence[Weight], mp: int) -> Held:
    """What Meta's shards hold: even shares; fewer KV heads than shards stand on neighbours."""
    units = {"heads": params.n_heads, "feed-forward columns": params.ffn_dim, "vocabulary entries": params.vocab_size}
    if mp <= params.n_kv_heads:
        units["KV heads"] = params.n_kv_heads
    if any(weight.axis == "width" for weight in weights):
        units["embedding dimensions"] = params.dim
    try:
        for unit, count in units.items():
            even_share(count, mp, unit)
        split = split_of(params, mp)
        if not split.meta:
            even_share(params.n_kv_heads, mp, "KV heads")
    except RefusedError as error:
        raise RefusedError(
            f"{folder / 'params.json'}: {error}, and the folder holds {mp} shards without a {MANIFEST} that says how "
            "they are cut; params.json and the shards are of different models"
        ) from None
    return {weight.name: weight.slices(split) for weight in weights}


def _with_listed_kv_heads(folder: Path, params: Params, slices: Held, mp: int) -> Params:
    """The true number of KV heads: where they stand on several shards, Meta's params.json counts every copy."""
    held = slices.get("layers.0.attention.wk.weight", ())
    heads = max((own.stop for own in held), default=0) // params.head_dim
    if heads < 1 or params.n_heads % heads or (params.n_kv_heads != heads and (params.n_kv_heads != mp or mp % heads)):
        raise RefusedError(
            f"{folder / MANIFEST}: lists {heads} KV heads, but n_kv_heads in params.json is {params.n_kv_heads}; "
            "the two files are of different checkpoints"
        )
    return replace(params, n_kv_heads=heads)


def _whole_slices(folder: Path, params: Params, weights: Sequence[Weight], slices: Held, mp: int) -> Held:
    """The listed slices, and the whole of what is not cut.

    RefusedError where they are no deal: every part held once and in order of the ranks, the same for all
    weights that are cut along the same thing, and with each query head the KV head that it uses.
    """
    held: Held = {}
    axes: dict[str, tuple[Slice, ...]] = {}
    for weight in weights:
        if weight.cut is None:
            held[weight.name] = (Slice(0, weight.length),) * mp
            continue
        found = slices.get(weight.name, ())
        owned = tuple(Slice(own.start // weight.unit, own.stop // weight.unit) for own in found)
        wanted = axes.setdefault(weight.axis, _queried(params, axes["heads"]) if weight.axis == "kv_heads" else owned)
        whole_units = tuple(own * weight.unit for own in owned) == found
        in_order = weight.axis == "kv_heads" or _dealt(owned, weight.length // weight.unit)
        if len(found) != mp or owned != wanted or not whole_units or not in_order:
            raise RefusedError(
                f"{folder / MANIFEST}: the slices of {weight.name} do not make up its {weight.length} numbers along "
                f"dimension {weight.cut}; get the file again, or write the checkpoint again"
            )
        held[weight.name] = found
    return held


def _queried(params: Params, heads: Sequence[Slice]) -> tuple[Slice, ...]:
    """The KV heads that each rank's query heads use."""
    group = params.n_heads // params.n_kv_heads
    return tuple(Slice(own.start // group, (own.stop - 1) // group + 1) for own in heads)


def _dealt(owned: Sequence[Slice], count: int) -> bool:
    """True where the slices follow each other from 0 to `count`, none of them empty."""
    ends = [0, *(own.stop for own in owned)]
    return ends[-1] == count and all(
        own.start == end and own.size > 0 for own, end in zip(owned, ends[:-1], strict=True)
    )
