"""params.json, read strictly: every key is known, typed and in range, or refused by name."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.files import open_regular
from model.params import GivenRope, Params, ffn_width, rope_of
from parallel.errors import RefusedError

_MAX_BYTES = 2**20
# Run-time settings that some exports carry. The flags decide; a value in the file is passed over.
RUN_TIME_KEYS = ("max_seq_len", "max_batch_size")


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
    theta, scaling, reason = rope_of(given, dim, raw.get("vocab_size", -1))
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
