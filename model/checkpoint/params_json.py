"""params.json, read strictly (every key is known, typed and in range, or refused by name), and written.

Meta's file says only that the rotary frequencies are scaled. Four keys are ours, written only where what
Meta's code has hard-wired would not do: `rope_scaling_factor`, and `rope_low_freq_factor`,
`rope_high_freq_factor`, `rope_old_context_tokens` (1, 4 and 8192 where absent; they want `rope_theta`,
`rope_scaling_factor` and `use_scaled_rope` beside them).
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.files import printable
from model.checkpoint.strict_json import Field, read_json_object
from model.params import GivenRope, Params, RopeScaling, ffn_width, rope_of
from parallel.errors import RefusedError

# Run-time settings that some exports carry. The flags decide; a value in the file is passed over.
RUN_TIME_KEYS = ("max_seq_len", "max_batch_size")

FIELDS: dict[str, Field] = {
    "dim": Field(int, 1, 2**20),
    "n_layers": Field(int, 1, 4096),
    "n_heads": Field(int, 1, 2**16),
    "n_kv_heads": Field(int, 1, 2**16, nullable=True),
    "vocab_size": Field(int, -1, 2**24),
    "multiple_of": Field(int, 1, 2**24),
    "ffn_dim_multiplier": Field(float, 0.01, 100, nullable=True),
    "norm_eps": Field(float, 1e-20, 1),
    "rope_theta": Field(float, 1, 1e12),
    "use_scaled_rope": Field(bool),
    "rope_scaling_factor": Field(float, 1, 1e6),
    "rope_low_freq_factor": Field(float, 1e-6, 1e6),
    "rope_high_freq_factor": Field(float, 1e-6, 1e6),
    "rope_old_context_tokens": Field(int, 1, 2**40),
    "max_seq_len": Field(int, 1, 2**40),
    "max_batch_size": Field(int, 1, 2**40),
}
_REQUIRED = ("dim", "n_layers", "n_heads")
_BLEND_KEYS = {
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_old_context_tokens": "old_context_tokens",
}
_BLEND_NEEDS = ("rope_theta", "rope_scaling_factor", "use_scaled_rope")
# multiple_of and ffn_dim_multiplier of the published files; each of them meets its own pair first, or the same
# width without a multiplier.
_PUBLISHED_WIDTHS = ((256, None), (256, 1.5), (4096, 1.3), (1024, 1.3), (4096, 1.2))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists() and not path.is_symlink():
        raise RefusedError(f"{path}: does not exist; a Meta checkpoint folder holds params.json beside its shards")
    return read_json_object(path, '{"dim": 4096, ...}')


def _check_field(path: Path, key: str, value: Any) -> None:
    field = FIELDS.get(key)
    if field is None:
        near = difflib.get_close_matches(key, FIELDS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(FIELDS)}"
        raise RefusedError(f"{path}: unknown key '{printable(key)}'{hint}")
    field.check(path, key, value)


def read_params(path: Path) -> Params:
    """Read and check a params.json. RefusedError names the file, the key, the value and what was wanted."""
    raw = _read_json(path)
    for key, value in raw.items():
        _check_field(path, key, value)
    for key in _REQUIRED:
        if key not in raw:
            raise RefusedError(f"{path}: key '{key}' is missing; wanted {FIELDS[key].wanted}")
    dim, n_heads = raw["dim"], raw["n_heads"]
    n_kv_heads = raw.get("n_kv_heads") or n_heads
    check_heads(path, dim, n_heads, n_kv_heads, ("dim", "n_heads", "n_kv_heads"))
    if raw.get("vocab_size") == 0:
        raise RefusedError(f"{path}: vocab_size is 0; wanted a positive number, or -1 for the tokenizer's size")
    given = GivenRope(
        theta=float(raw["rope_theta"]) if "rope_theta" in raw else None,
        scaled=raw.get("use_scaled_rope", False),
        factor=float(raw["rope_scaling_factor"]) if "rope_scaling_factor" in raw else None,
    )
    theta, scaling, reason = rope_of(given, dim, raw.get("vocab_size", -1))
    blend: dict[str, Any] = {field: raw[key] for key, field in _BLEND_KEYS.items() if key in raw}
    if blend:
        scaling = _blended(path, scaling, raw, blend)
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
        # With these keys all is said: the vocabulary, once known, changes nothing.
        rope_given=None if blend else given,
    )


def check_heads(path: Path, dim: int, n_heads: int, n_kv_heads: int, names: tuple[str, str, str]) -> None:
    """Refuse heads that do not divide the width, or each other. `names`: what the file calls the three."""
    if dim % n_heads or (dim // n_heads) % 2:
        raise RefusedError(
            f"{path}: {names[0]}={dim} over {names[1]}={n_heads} gives {dim / n_heads:g} numbers a head; "
            "wanted a whole, even number (rotary embedding turns pairs)"
        )
    if n_heads % n_kv_heads:
        raise RefusedError(
            f"{path}: {names[2]}={n_kv_heads} does not divide {names[1]}={n_heads}; "
            "every KV head serves the same number of query heads"
        )


def _blended(path: Path, scaling: RopeScaling | None, raw: dict[str, Any], blend: dict[str, Any]) -> RopeScaling:
    """The scaling with the file's own bounds between kept and slowed frequencies."""
    missing = [key for key in _BLEND_NEEDS if not raw.get(key)]
    if scaling is None or missing:
        key = next(key for key in _BLEND_KEYS if key in raw)
        raise RefusedError(f"{path}: {key} is given without {', '.join(missing)}; give all of them, or none")
    found = replace(scaling, **blend)
    if found.low_freq_factor >= found.high_freq_factor:
        raise RefusedError(
            f"{path}: rope_low_freq_factor={found.low_freq_factor:g} is not below "
            f"rope_high_freq_factor={found.high_freq_factor:g}"
        )
    return found


def params_json_of(params: Params) -> dict[str, object]:
    """The content of a params.json that `read_params` reads as `params`, in every number.

    RefusedError where no multiple_of and ffn_dim_multiplier give the feed-forward width.
    """
    multiple_of, multiplier = _width_keys(params.dim, params.ffn_dim)
    content: dict[str, object] = {
        "dim": params.dim,
        "n_layers": params.n_layers,
        "n_heads": params.n_heads,
        "n_kv_heads": params.n_kv_heads,
        "vocab_size": params.vocab_size,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": params.norm_eps,
        "rope_theta": params.rope_theta,
        "use_scaled_rope": True,
    }
    if multiplier is None:
        del content["ffn_dim_multiplier"]
    if params.rope_scaling is None:
        del content["use_scaled_rope"]
        return content
    return content | _scaling_keys(params, params.rope_scaling)


def _scaling_keys(params: Params, scaling: RopeScaling) -> dict[str, object]:
    """Our own keys, where `rope_of` would not find this scaling by itself."""
    given = GivenRope(theta=params.rope_theta, scaled=True, factor=None)
    if rope_of(given, params.dim, params.vocab_size)[1] == scaling:
        return {}
    keys: dict[str, object] = {"rope_scaling_factor": scaling.factor}
    if scaling != RopeScaling(factor=scaling.factor):
        keys |= {key: getattr(scaling, field) for key, field in _BLEND_KEYS.items()}
    return keys


def _width_keys(dim: int, ffn_dim: int) -> tuple[int, float | None]:
    """A multiple_of and an ffn_dim_multiplier that give `ffn_dim`: a published pair, else the simplest."""
    rounded = [(2**power, None) for power in range(24, -1, -1)]
    # Half a number more, so that rounding down meets it.
    exact = (1, (ffn_dim + 0.5) / ffn_width(dim, 1, None))
    for multiple_of, multiplier in (*_PUBLISHED_WIDTHS, *rounded, exact, (ffn_dim, None)):
        fits = FIELDS["multiple_of"].fits(multiple_of) and FIELDS["ffn_dim_multiplier"].fits(multiplier)
        if fits and ffn_width(dim, multiple_of, multiplier) == ffn_dim:
            return multiple_of, multiplier
    raise RefusedError(
        f"a feed-forward width of {ffn_dim} cannot be written to params.json: it is less than a hundredth of what "
        f"Meta's rule gives for a model {dim} wide"
    )
