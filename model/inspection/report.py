"""The report of `inspect`: plain values, which become the JSON object as they are."""

from dataclasses import dataclass
from typing import Literal

from model.checkpoint.checkpoint import Layout
from model.params import RopeScaling

# The MP sizes that a report goes through: no published model has more heads.
MOST_RANKS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    name: str
    size_bytes: int
    # How many numbers of each dtype.
    numbers: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReport:
    """The weights of one kind, one of each layer, under their name in the files."""

    # With a * for the layer.
    name: str
    count: int
    # Uncut.
    shape: tuple[int, ...]
    # The dimension that the files cut it along; None where they hold it whole.
    cut: int | None
    # The shape of what each shard holds; one, where the layout does not cut.
    parts: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    # Rows in Hugging Face's rotary order.
    turned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesReport:
    """The tensors that every shard holds whole."""

    tensors: int
    # None where the headers do not tell.
    equal: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerReport:
    path: str
    # None where the file cannot be read.
    kind: str | None
    pieces: int | None
    matches: bool
    # Why it does not match, or cannot be read.
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksReport:
    """On how many ranks the model runs, up to MOST_RANKS."""

    even: tuple[int, ...]
    # Even, but for KV heads that stand on several ranks.
    repeated: tuple[int, ...]
    uneven: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecklistEntry:
    """A line of checklist.chk, and whether the file is what it says."""

    file: str
    found: Literal["equal", "different", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepReport:
    """What reading every number told. All were finite, and all as the files' own checksums say."""

    read_bytes: int
    # The files have checksums of their own (safetensors files have none).
    checksums: bool
    tied: bool
    # SHA-256 of the uncut weights, the same however they are cut and laid out.
    content_sha256: str
    # Of each weight file's bytes, by name.
    sha256: dict[str, str]
    # None where the folder has no checklist.chk.
    checklist: tuple[ChecklistEntry, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """All that `inspect` says. Its fields are those of the JSON object."""

    folder: str
    layout: Layout
    family: str
    # Distinct numbers: a tied output counts nothing, and each KV head once.
    parameters: int
    # With a second embedding and copies of KV heads, where the files hold them.
    stored_parameters: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rope_reason: str
    dtype: str
    mp: int
    files: tuple[FileReport, ...]
    weights: tuple[WeightReport, ...]
    # Keys that are in the files and can be computed.
    ignored: tuple[str, ...]
    # How often a KV head stands in the files: at least and at most.
    kv_copies: tuple[int, int]
    # None where the headers do not tell.
    tied: bool | None
    tied_reason: str
    # None in layouts that have none. Where it is there it agrees: otherwise the folder is refused.
    shards_json: Literal["agrees", "absent"] | None
    copies: CopiesReport | None
    tokenizer: TokenizerReport | None
    ranks: RanksReport
    notes: tuple[str, ...]
    deep: DeepReport | None
