"""A folder in Meta's layout: params.json, consolidated.00.pth and on, tokenizer.model. Headers only; no torch.

`open_checkpoint` answers, within milliseconds, whether the folder is what it should be. Reading weights
is in `loading.py`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.checkpoint.files import DTYPE_BYTES, ShardHeader, describe_start, open_regular
from model.checkpoint.legacy import read_legacy_header
from model.checkpoint.manifest import MANIFEST, check_manifest, checksums
from model.checkpoint.params_json import read_params
from model.checkpoint.torch_file import is_legacy, read_header
from model.cuts import IGNORED_KEYS, Weight, all_weights
from model.params import Params
from parallel.errors import RefusedError

_SHARD = re.compile(r"consolidated\.(\d+)\.pth")
_MAX_SHARDS = 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds, checked: `shards[r]` is the header of rank r's file at MP `mp`."""

    folder: Path
    params: Params
    shards: tuple[ShardHeader, ...]
    embedding_dim: int
    dtype: str
    notes: tuple[str, ...]

    @property
    def mp(self) -> int:
        return len(self.shards)

    def with_embedding_dim(self, embedding_dim: int) -> "Checkpoint":
        """The same, its embedding to be cut along `embedding_dim`: only a single file leaves the choice open."""
        assert self.mp == 1
        return replace(self, embedding_dim=embedding_dim)

    def fingerprint(self) -> dict[str, object]:
        """What must be the same on every rank: sizes, and the checksum of every tensor of every shard."""
        sums = [sorted(checksums(header).items()) for header in self.shards]
        digest = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
        return {"params.json": str(self.params), "the shards' checksums": digest}

    def check_mp(self, ranks: int) -> None:
        """Refuse where the number of ranks is not the number of shards, with the commands that mend it."""
        if ranks == self.mp:
            return
        target = f"{self.folder.resolve().name}-mp{ranks}"
        raise RefusedError(
            f"{self.folder}: holds {self.mp} shard{'s' if self.mp > 1 else ''} (MP {self.mp}) but {ranks} "
            f"rank{'s were' if ranks > 1 else ' was'} started (world size {ranks}); start {self.mp}: "
            f"--nproc_per_node {self.mp} (torchrun: --nproc-per-node {self.mp}), or cut it anew: "
            f"shardrun reshard {self.folder} {self.folder.resolve().parent / target} --mp {ranks}"
        )


def open_checkpoint(folder: str | Path, allow_legacy: bool = False) -> Checkpoint:
    """Read and check a checkpoint folder's headers. RefusedError says what is wrong with it, and where.

    `allow_legacy`: read bare-pickle files of torch before 1.6 too (their weights only, never code).
    """
    folder = Path(folder)
    files, notes = _list_shards(folder)
    params = read_params(folder / "params.json")
    headers = [read_legacy_header(path) if allow_legacy and is_legacy(path) else read_header(path) for path in files]
    if any(header.nested for header in headers):
        notes.append(f"{folder}: the weights stand nested under 'model'; read as what they are")
    _check_not_copies(headers)
    params = _with_vocabulary(folder, params, headers)
    embedding_dim = _embedding_dim(params, headers)
    _check_layers(folder, params, headers[0])
    weights = all_weights(params, embedding_dim)
    _check_split(folder, weights, len(headers))
    for header in headers:
        _check_weights(header, params, weights, headers)
    _check_replicated(weights, headers)
    if not check_manifest(folder, headers) and len(headers) > 1:
        notes.append(f"{folder}: has no {MANIFEST}, so swapped shards could not be told (Meta's files carry no rank)")
    return Checkpoint(folder, params, tuple(headers), embedding_dim, _dtype(headers, notes), tuple(notes))


def _list_shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The shard files in order of their numbers, and notes on what was passed over."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        raise RefusedError(
            f"{folder}: does not exist; --ckpt_dir (or SRC) wants the folder that holds params.json"
        ) from None
    except NotADirectoryError:
        raise RefusedError(
            f"{folder}: is a file; --ckpt_dir (or SRC) wants the folder that holds it and params.json"
        ) from None
    except OSError as error:
        raise RefusedError(f"{folder}: cannot be read: {error.strerror}") from None
    numbers: dict[int, str] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        if match is None:
            continue
        number = int(match.group(1))
        if number in numbers:
            raise RefusedError(f"{folder}: holds both {numbers[number]} and {name}; keep one of them as shard {number}")
        numbers[number] = name
    if not numbers:
        raise RefusedError(f"{folder}: {_describe_foreign(folder, names)}")
    last = max(numbers)
    if last > _MAX_SHARDS:
        raise RefusedError(f"{folder}: {numbers[last]} has a number that no shard has; move it away")
    missing = [number for number in range(last) if number not in numbers]
    if missing:
        shown = ", ".join(f"consolidated.{number:02d}.pth" for number in missing[:8])
        raise RefusedError(
            f"{folder}: {len(missing)} of {last + 1} shards missing: {shown}{', ...' if len(missing) > 8 else ''} "
            f"(the last one found is {numbers[last]}); get the missing files"
        )
    others = [name for name in names if name.endswith((".pth", ".pt")) and not _SHARD.fullmatch(name)]
    notes = [f"{folder}: {', '.join(others)} ignored: shards are named consolidated.NN.pth"] if others else []
    return [folder / numbers[number] for number in sorted(numbers)], notes


def _describe_foreign(folder: Path, names: Sequence[str]) -> str:
    """What a folder without a shard is, and what to do."""
    wanted = "wanted params.json and consolidated.00.pth, consolidated.01.pth, ..."
    if not names:
        return f"is empty; {wanted}"
    if any(name.endswith(".safetensors") or name.startswith("pytorch_model") for name in names):
        original = folder / "original"
        where = f"its subfolder {original}" if original.is_dir() else "the 'original' folder of the same repository"
        return (
            f"is a Hugging Face folder (it holds config.json and its weights), not Meta's; give {where}, "
            "which holds Meta's files"
        )
    if any(name.endswith(".gguf") for name in names):
        return f"holds a GGUF file, not Meta's shards; {wanted}"
    for name in names:
        path = folder / name
        if path.is_file() and (what := _describe_first_bytes(path)) is not None:
            return f"{name} {what}; {wanted}"
    inner = [name for name in names if (folder / name).is_dir() and any((folder / name).glob("consolidated.*.pth"))]
    if inner:
        return f"holds no shards, but its subfolder does: give {folder / inner[0]}"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"holds no consolidated.NN.pth; {wanted}; found {shown}"


def _describe_first_bytes(path: Path) -> str | None:
    with open_regular(path) as file:
        start = file.read(64)
    return describe_start(start) if start else None


def _check_not_copies(headers: Sequence[ShardHeader]) -> None:
    """A shard copied over another has the same checksums; two true shards never do."""
    for later, header in enumerate(headers):
        for earlier, other in enumerate(headers[:later]):
            if checksums(header) == checksums(other):
                raise RefusedError(
                    f"{header.path.parent}: {other.path.name} and {header.path.name} are identical "
                    "(the CRC-32 of every "
                    f"tensor); one was copied over the other: get shard {earlier} or {later} again"
                )


def _with_vocabulary(folder: Path, params: Params, headers: Sequence[ShardHeader]) -> Params:
    """vocab_size from params.json, or from the output layer's rows where the file leaves it open."""
    output = headers[0].tensors.get("output.weight")
    if output is None or len(output.shape) != 2:
        return params
    rows = output.shape[0] * len(headers)
    if params.vocab_size not in (-1, rows):
        raise RefusedError(
            f"{folder / 'params.json'}: vocab_size is {params.vocab_size}, but output.weight of "
            f"{headers[0].path.name} has {output.shape[0]} rows ({rows} over {len(headers)} "
            f"shard{'s' if len(headers) > 1 else ''}); correct it, or write -1"
        )
    return params.with_vocab_size(rows)


def _embedding_dim(params: Params, headers: Sequence[ShardHeader]) -> int:
    """Along which dimension tok_embeddings is cut, read off its shape (families differ, and so do exports)."""
    entry = headers[0].tensors.get("tok_embeddings.weight")
    return 0 if entry is not None and len(headers) > 1 and entry.shape[1:] == (params.dim,) else 1


def _check_layers(folder: Path, params: Params, header: ShardHeader) -> None:
    numbers = {int(key.split(".")[1]) for key in header.tensors if re.match(r"layers\.\d+\.", key)}
    layers = max(numbers, default=-1) + 1
    if layers != params.n_layers:
        raise RefusedError(
            f"{folder / 'params.json'}: n_layers is {params.n_layers}, but {header.path.name} holds {layers} layers; "
            "params.json and the shards are of different models"
        )


def _check_split(folder: Path, weights: Sequence[Weight], mp: int) -> None:
    """Every weight splits evenly over the shards that are there."""
    for weight in weights:
        try:
            weight.shape_at(mp)
        except RefusedError as error:
            raise RefusedError(
                f"{folder / 'params.json'}: {error}, and the folder holds {mp} shards; "
                "params.json and the shards are of different models"
            ) from None


def _check_weights(
    header: ShardHeader, params: Params, weights: Sequence[Weight], headers: Sequence[ShardHeader]
) -> None:
    """Every key is there, none besides, and each has its shape."""
    mp = len(headers)
    names = {weight.name for weight in weights}
    missing = [weight.name for weight in weights if weight.name not in header.tensors]
    if missing:
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        rank = headers.index(header)
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
        found, wanted = header.tensors[name].shape, weight.shape_at(mp)
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


def _check_replicated(weights: Sequence[Weight], headers: Sequence[ShardHeader]) -> None:
    """Norm weights are whole in every shard and must be equal: their checksums are in the headers."""
    whole = [weight.name for weight in weights if weight.cut is None]
    first = headers[0]
    for header in headers[1:]:
        for name in whole:
            mine, theirs = header.tensors[name], first.tensors[name]
            if mine.nbytes == theirs.nbytes == mine.record_bytes == theirs.record_bytes and mine.crc32 != theirs.crc32:
                raise RefusedError(
                    f"{header.path}: {name} differs from that of {first.path.name}, though every shard holds it whole; "
                    "the shards are of different models"
                )


def _dtype(headers: Sequence[ShardHeader], notes: list[str]) -> str:
    """The dtype of most numbers; a mixture is noted."""
    numbers: Counter[str] = Counter()
    for header in headers:
        for entry in header.tensors.values():
            numbers[entry.dtype] += entry.nbytes // DTYPE_BYTES[entry.dtype]
    dtype = numbers.most_common(1)[0][0]
    if len(numbers) > 1:
        notes.append(f"{headers[0].path.parent}: holds {' and '.join(sorted(numbers))}; dtype auto takes {dtype}")
    return dtype
