"""Write a checkpoint as Meta's shards, cut for any number of ranks, into a folder of its own.

Streaming: memory holds one tensor of one shard. Atomic: the shards are written to a hidden folder beside
DST, flushed, and renamed as a whole; a kill or a full disk leaves no DST, and SRC is only read.
The format on disk: docs/adr/0007-any-mp.md.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress, running_total
from model.checkpoint.manifest import MANIFEST, manifest_text
from model.checkpoint.new_folder import SMALL_FILE_BYTES, carry, check_destination, write_folder
from model.checkpoint.params_json import params_json_of
from model.checkpoint.reading import WeightReader, open_weights
from model.checkpoint.shard_writer import PlannedTensor, write_shard
from model.checkpoint.torch_file import read_header
from model.cuts import Weight
from model.split import Split
from model.tokenizers.opening import find_tokenizer
from parallel.slices import Slice

# Written anew, or true of the source's layout only.
_NOT_CARRIED = (MANIFEST, "params.json", "config.json")


def write_meta_folder(source: Checkpoint, destination: Path, mp: int, progress: Progress | None = None) -> None:
    """Write `source` cut for `mp` ranks to `destination`, which must not exist.

    The embedding is cut along `source.embedding_dim`. RefusedError where there are fewer heads than ranks, the
    disk is too small, or a weight of `source` is damaged.
    """
    split, weights = source.split(mp), source.weights
    held = [{weight.name: weight.slices(split)[rank] for weight in weights} for rank in range(mp)]
    itemsizes = {name: getattr(torch, pieces[0].entry.dtype).itemsize for name, pieces in source.pieces.items()}
    total = sum(
        torch.Size(weight.shape_of(own[weight.name])).numel() * itemsizes[weight.name]
        for own in held
        for weight in weights
    )
    check_destination(destination, total, source.folder)
    wrote = running_total(total, progress)

    def fill(partial: Path) -> None:
        # First what is quickly done: an odd file among these is told before the weights are written.
        _copy_small_files(source, partial)
        paths = [partial / f"consolidated.{rank:02d}.pth" for rank in range(mp)]
        with open_weights(source) as reader:
            for path, own in zip(paths, held, strict=True):
                write_shard(path, [_plan(reader, weight, own[weight.name]) for weight in weights], wrote)
        headers = [read_header(path) for path in paths]
        (partial / "params.json").write_text(_params_text(source, split), encoding="utf-8")
        (partial / MANIFEST).write_text(manifest_text(headers, weights, split), encoding="utf-8")

    write_folder(destination, fill)


def _plan(reader: WeightReader, weight: Weight, own: Slice) -> PlannedTensor:
    dtype = getattr(torch, reader.checkpoint.pieces[weight.name][0].entry.dtype)
    return PlannedTensor(weight.name, weight.shape_of(own), dtype, lambda: reader.read(weight, own))


def _params_text(source: Checkpoint, split: Split) -> str:
    """params.json as the source has it, but n_kv_heads as Meta's own files count it: those that are stored.

    An uneven cut, or one whose ranks share KV heads unevenly, is not Meta's, and keeps the true number.
    """
    copies = split.kv_copies if split.meta else 1
    stored = source.params.n_kv_heads * copies
    if source.layout != "meta":
        return json.dumps(params_json_of(replace(source.params, n_kv_heads=stored))) + "\n"
    params: dict[str, object] = json.loads((source.folder / "params.json").read_text(encoding="utf-8"))
    if params.get("n_kv_heads", source.params.n_heads) != stored:
        params["n_kv_heads"] = stored
    return json.dumps(params) + "\n"


def _copy_small_files(source: Checkpoint, destination: Path) -> None:
    """Carry along the tokenizer (Meta's downloads have it in the parent) and whatever else is small."""
    for path in sorted(source.folder.iterdir()):
        small = path.suffix in (".json", ".model", ".md", ".txt", ".jinja")
        wanted = small and path.name not in _NOT_CARRIED and not path.name.endswith(".index.json")
        if wanted and path.is_file() and path.stat().st_size <= SMALL_FILE_BYTES:
            carry(path, destination)
    tokenizer = find_tokenizer(source.folder)
    if tokenizer is not None and not (destination / tokenizer.name).exists():
        carry(tokenizer, destination)
