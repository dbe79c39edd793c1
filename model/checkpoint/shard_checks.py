"""What the headers of a set of shards must agree on. Each refusal names the file and the key."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.checkpoint.files import FileHeader
from model.cuts import IGNORED_KEYS, Weight
from model.params import Params
from parallel.errors import RefusedError
from parallel.slices import Slice


def check_not_copies(headers: Sequence[FileHeader]) -> None:
    """A shard copied over another has the same checksums; two true shards never do."""
    for later, header in enumerate(headers):
        for earlier, other in enumerate(headers[:later]):
            if header.checksums == other.checksums:
                raise RefusedError(
                    f"{header.path.parent}: {other.path.name} and {header.path.name} are identical "
                    "(the CRC-32 of every "
                    f"tensor); one was copied over the other: get shard {earlier} or {later} again"
                )


def check_layers(folder: Path, params: Params, header: FileHeader) -> None:
    """params.json and the shards have the same number of layers."""
    numbers = {int(key.split(".")[1]) for key in header.tensors if re.match(r"layers\.\d+\.", key)}
    layers = max(numbers, default=-1) + 1
    if layers != params.n_layers:
        raise RefusedError(
            f"{folder / 'params.json'}: n_layers is {params.n_layers}, but {header.path.name} holds {layers} layers; "
            "params.json and the shards are of different models"
        )


def check_weights(
    header: FileHeader,
    params: Params,
    weights: Sequence[Weight],
    headers: Sequence[FileHeader],
    held: Mapping[str, Sequence[Slice]],
) -> None:
    """Every key is there, none besides, and each has the shape of what its shard holds."""
    mp, rank = len(headers), headers.index(header)
    names = {weight.name for weight in weights}
    missing = [weight.name for weight in weights if weight.name not in header.tensors]
    if missing:
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RefusedError(f"{header.path}: {missing[0]}{also} missing (shard of rank {rank}); get the file again")
    unknown = [name for name in header.tensors if name not in names and name not in IGNORED_KEYS]
    if unknown:
        also = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise RefusedError(
            f"{header.path}: holds {unknown[0]}{also}, which a Llama with this params.json does not have; "
            "the shard is of another model, or not a Llama"
        )
    for weight in weights:
        name, first = weight.name, headers[0]
        dtype = header.tensors[name].dtype
        if dtype != first.tensors[name].dtype:
            raise RefusedError(
                f"{header.path}: {name} is {dtype}, but {first.tensors[name].dtype} in {first.path.name}; "
                "the shards are of different exports: get them from one source"
            )
        found, wanted = header.tensors[name].shape, weight.shape_of(held[name][rank])
        if found != wanted:
            raise RefusedError(
                f"{header.path}: {name} has shape {list(found)}; params.json and {mp} "
                f"shard{'s' if mp > 1 else ''} give "
                f"{list(wanted)} ({_sizes_behind(name, params)})"
            )


def _sizes_behind(name: str, params: Params) -> str:
    """The numbers of params.json that a weight's shape comes from."""
    if ".attention.wk" in name or ".attention.wv" in name:
        return f"n_kv_heads={params.n_kv_heads}, n_heads={params.n_heads}, dim={params.dim}"
    if ".feed_forward." in name:
        return f"dim={params.dim} and a width of {params.ffn_dim} from multiple_of and ffn_dim_multiplier"
    return f"dim={params.dim}, n_heads={params.n_heads}, vocabulary {params.vocab_size}"


def check_replicated(weights: Sequence[Weight], headers: Sequence[FileHeader]) -> None:
    """Norm weights are whole in every shard and must be equal: their checksums are in the headers."""
    whole = [weight.name for weight in weights if weight.cut is None]
    first = headers[0]
    for header in headers[1:]:
        for name in whole:
            sums = (header.tensors[name].own_crc32, first.tensors[name].own_crc32)
            if None not in sums and sums[0] != sums[1]:
                raise RefusedError(
                    f"{header.path}: {name} differs from that of {first.path.name}, though every shard holds it whole; "
                    "the shards are of different models"
                )
