"""params.json: the sizes of a Llama, read strictly.

Facts by generation: llama `model.py` (ModelArgs), llama3 `model.py`, and the published files. Nothing
is guessed from a family's name; whatever is derived can be printed with its reason (`rope_reason`).
"""

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.shard_file import open_regular
from parallel.errors import RefusedError

_MAX_BYTES = 2**20
LLAMA_3_VOCABULARY = 128256
# Run-time settings that some exports carry. The flags decide; a value in the file is passed over.
RUN_TIME_KEYS = ("max_seq_len", "max_batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the slow rotary frequencies (arXiv:2407.21783, section 3.4)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_tokens: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Full, uncut sizes of a decoder. `vocab_size` is -1 where the file leaves it to the tokenizer."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rope_reason: str
    # What the file says of the rotary base; None where these sizes do not come from a file.
    rope_given: "GivenRope | None" = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def with_vocab_size(self, vocab_size: int) -> "Params":
        """These sizes with the vocabulary that was found; it may tell the rotary base (see `_rope`)."""
        if self.rope_given is None:
            return replace(self, vocab_size=vocab_size)
        theta, scaling, reason = _rope(self.rope_given, self.dim, vocab_size)
        return replace(self, vocab_size=vocab_size, rope_theta=theta, rope_scaling=scaling, rope_reason=reason)

    @property
    def n_parameters(self) -> int:
        """Numbers stored, embedding and output both counted."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.n_kv_heads * self.head_dim
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return self.n_layers * layer + 2 * self.vocab_size * self.dim + self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenRope:
    """The keys of params.json that decide the rotary embedding; None where one is absent."""

    theta: float | None
    scaled: bool
    factor: float | None


@dataclass(frozen=True, slots=True)
class _Field:
    kind: type[int] | type[float] | type[bool]
    low: float = 0
    high: float = 0
    nullable: bool = False

    @property
    def wanted(self) -> str:
        if self.kind is bool:
            return "true or false"
        noun = "a whole number" if self.kind is int else "a finite number"
        return f"{noun} of {self.low:.15g} to {self.high:.15g}"


_FIELDS: dict[str, _Field] = {
    "dim": _Field(int, 1, 2**20),
    "n_layers": _Field(int, 1, 4096),
    "n_heads": _Field(int, 1, 2**16),
    "n_kv_heads": _Field(int, 1, 2**16, nullable=True),
    "vocab_size": _Field(int, -1, 2**24),
    "multiple_of": _Field(int, 1, 2**24),
    "ffn_dim_multiplier": _Field(float, 0.01, 100, nullable=True),
    "norm_eps": _Field(float, 1e-20, 1),
    "rope_theta": _Field(float, 1, 1e12),
    "use_scaled_rope": _Field(bool),
    "rope_scaling_factor": _Field(float, 1, 1e6),
    "max_seq_len": _Field(int, 1, 2**40),
    "max_batch_size": _Field(int, 1, 2**40),
}
_REQUIRED = ("dim", "n_layers", "n_heads")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists() and not path.is_symlink():
        raise RefusedError(f"{path}: does not exist; a Meta checkpoint folder holds params.json beside its shards")
    with open_regular(path) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise RefusedError(f"{path}: has more than {_MAX_BYTES} bytes, which is no table of sizes; download it again")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: is not UTF-8 text (byte {error.start}); download it again") from None
    start = text.lstrip()[:40].lower()
    if start.startswith(("<!doctype", "<html", "<head", "<?xml")):
        raise RefusedError(f"{path}: is a web page, not JSON (an error page saved by a download?); download it again")
    if start.startswith("version https://git-lfs"):
        raise RefusedError(f"{path}: is a Git LFS pointer, not the file; run `git lfs pull` in its repository")
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(path, pairs))
    except json.JSONDecodeError as error:
        raise RefusedError(f"{path}:{error.lineno}:{error.colno}: is not valid JSON: {error.msg}") from None
    except RefusedError:
        raise
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        raise RefusedError(f"{path}: is not valid JSON: {reason}") from None
    if not isinstance(found, dict):
        raise RefusedError(f'{path}: holds {_kind_of(found)}; an object such as {{"dim": 4096, ...}} is expected')
    return found


def _without_repeats(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise RefusedError(f"{path}: key '{key}' is given twice; keep one")
    return dict(pairs)


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _check_field(path: Path, key: str, value: Any) -> None:
    field = _FIELDS.get(key)
    if field is None:
        near = difflib.get_close_matches(key, _FIELDS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(_FIELDS)}"
        raise RefusedError(f"{path}: unknown key '{key}'{hint}")
    if value is None and field.nullable:
        return
    if field.kind is bool:
        right = isinstance(value, bool)
    else:
        numeric = int if field.kind is int else int | float
        right = isinstance(value, numeric) and not isinstance(value, bool)
        right = right and field.low <= value <= field.high
    if not right:
        raise RefusedError(f"{path}: {key} is {json.dumps(value)[:80]}; wanted {field.wanted}")


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of the feed-forward layer (llama `model.py`, FeedForward)."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def _rope(given: GivenRope, dim: int, vocab_size: int) -> tuple[float, RopeScaling | None, str]:
    """The rotary base, its scaling, and where both come from."""
    if given.theta is not None:
        theta, reason = given.theta, "base from params.json"
    elif vocab_size == LLAMA_3_VOCABULARY:
        theta, reason = 500000.0, f"base 500000: absent, and a vocabulary of {LLAMA_3_VOCABULARY} is Llama 3's"
    else:
        theta, reason = 10000.0, "base 10000: absent, as in Llama 1 and 2"
    if not given.scaled:
        return theta, None, reason
    if given.factor is not None:
        factor, why = given.factor, "from params.json"
    elif dim in (2048, 3072) and vocab_size == LLAMA_3_VOCABULARY:
        factor, why = 32.0, "the shape is Llama 3.2's; rope_scaling_factor in params.json overrides"
    else:
        factor, why = 8.0, "Llama 3.1's; rope_scaling_factor in params.json overrides"
    return theta, RopeScaling(factor=factor), f"{reason}; scaled by {factor:g} ({why})"


def read_params(path: Path) -> Params:
    """Read and check a params.json. RefusedError names the file, the key, the value and what was wanted."""
    raw = _read_json(path)
    for key, value in raw.items():
        _check_field(path, key, value)
    for key in _REQUIRED:
        if key not in raw:
            raise RefusedError(f"{path}: key '{key}' is missing; wanted {_FIELDS[key].wanted}")
    dim, n_heads = raw["dim"], raw["n_heads"]
    n_kv_heads = raw.get("n_kv_heads") or n_heads
    if dim % n_heads or (dim // n_heads) % 2:
        raise RefusedError(
            f"{path}: dim={dim} over n_heads={n_heads} gives {dim / n_heads:g} numbers a head; "
            "wanted a whole, even number (rotary embedding turns pairs)"
        )
    if n_heads % n_kv_heads:
        raise RefusedError(
            f"{path}: n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}; "
            "every KV head serves the same number of query heads"
        )
    if raw.get("vocab_size") == 0:
        raise RefusedError(f"{path}: vocab_size is 0; wanted a positive number, or -1 for the tokenizer's size")
    given = GivenRope(
        theta=float(raw["rope_theta"]) if "rope_theta" in raw else None,
        scaled=raw.get("use_scaled_rope", False),
        factor=float(raw["rope_scaling_factor"]) if "rope_scaling_factor" in raw else None,
    )
    theta, scaling, reason = _rope(given, dim, raw.get("vocab_size", -1))
    return Params(
        dim=dim,
        n_layers=raw["n_layers"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=ffn_width(dim, raw.get("multiple_of", 256), raw.get("ffn_dim_multiplier")),
        vocab_size=raw.get("vocab_size", -1),
        norm_eps=float(raw.get("norm_eps", 1e-5)),
        rope_theta=theta,
        rope_scaling=scaling,
        rope_reason=reason,
        rope_given=given,
    )
