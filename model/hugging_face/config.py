"""config.json of a Hugging Face folder: read to the sizes of a Llama, and written from them.

Keys that change what is computed are read or refused; others (how it was trained, who wrote it) are passed
over, as transformers' LlamaForCausalLM does. Written in the spelling of transformers 4, which 5 reads too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.params_json import FIELDS, check_heads
from model.checkpoint.strict_json import Field, read_json_object, shown
from model.params import LLAMA_3_VOCABULARY, Params, RopeScaling
from parallel.errors import RefusedError

CONFIG = "config.json"
# Hugging Face's key, and the one of params.json whose range holds for it.
_SIZES = {
    "hidden_size": FIELDS["dim"],
    "intermediate_size": Field(int, 1, 2**24),
    "num_hidden_layers": FIELDS["n_layers"],
    "num_attention_heads": FIELDS["n_heads"],
    "num_key_value_heads": FIELDS["n_kv_heads"],
    "vocab_size": Field(int, 1, 2**24),
    "rms_norm_eps": FIELDS["norm_eps"],
    "tie_word_embeddings": Field(bool),
}
_OPTIONAL = {"num_key_value_heads": None, "tie_word_embeddings": False}
_THETA = FIELDS["rope_theta"]
# Of transformers' LlamaConfig, where rope_theta is absent.
_USUAL_THETA = 10000.0
# What a Llama has; anything else under these keys computes something else. Absent and null are the same.
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
}
_SCALING = {
    "factor": ("factor", FIELDS["rope_scaling_factor"]),
    "low_freq_factor": ("low_freq_factor", FIELDS["rope_low_freq_factor"]),
    "high_freq_factor": ("high_freq_factor", FIELDS["rope_high_freq_factor"]),
    "original_max_position_embeddings": ("old_context_tokens", FIELDS["rope_old_context_tokens"]),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What config.json says. `dtype` is None where it says none; the files' own decides."""

    params: Params
    tied: bool
    dtype: str | None


def read_config(path: Path) -> LlamaConfig:
    """Read and check a config.json. RefusedError names the file, the key, the value and what was wanted."""
    if not path.exists() and not path.is_symlink():
        raise RefusedError(f"{path}: does not exist; a Hugging Face folder holds it beside its weights")
    raw = read_json_object(path, '{"model_type": "llama", ...}')
    _check_kind(path, raw)
    sizes = {key: _size(path, raw, key, field) for key, field in _SIZES.items()}
    dim, n_heads = sizes["hidden_size"], sizes["num_attention_heads"]
    n_kv_heads = sizes["num_key_value_heads"] or n_heads
    check_heads(path, dim, n_heads, n_kv_heads, ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if raw.get("head_dim") not in (None, dim // n_heads):
        raise RefusedError(
            f"{path}: head_dim is {shown(raw['head_dim'])}; wanted hidden_size over num_attention_heads, "
            f"{dim // n_heads}: heads of another size are not supported"
        )
    theta, scaling = _rope(path, raw)
    scaled = "" if scaling is None else f"; scaled by {scaling.factor:g} (from {CONFIG})"
    params = Params(
        dim=dim,
        n_layers=sizes["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
        norm_eps=float(sizes["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        rope_reason=f"base from {CONFIG}{scaled}",
    )
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    return LlamaConfig(
        params=params,
        tied=sizes["tie_word_embeddings"],
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else None,
    )


def _check_kind(path: Path, raw: Mapping[str, Any]) -> None:
    """Refuse what is not a plain Llama that generates text."""
    if raw.get("model_type") != "llama":
        raise RefusedError(
            f'{path}: model_type is {shown(raw.get("model_type"))}; wanted "llama": other architectures are '
            "not supported"
        )
    architectures = raw.get("architectures")
    if architectures not in (None, [], ["LlamaForCausalLM"]):
        raise RefusedError(f'{path}: architectures is {shown(architectures)}; wanted ["LlamaForCausalLM"]')
    if raw.get("quantization_config") is not None:
        raise RefusedError(
            f"{path}: has a quantization_config, and quantised weights of Hugging Face are not supported; "
            "give the unquantised model"
        )
    for key, wanted in _FIXED.items():
        value = raw.get(key)
        if value is not None and (isinstance(value, bool) != isinstance(wanted[0], bool) or value not in wanted):
            raise RefusedError(f"{path}: {key} is {shown(value)}; wanted {shown(wanted[0])}: no other is supported")


def _size(path: Path, raw: Mapping[str, Any], key: str, field: Field) -> Any:
    if key not in raw and key in _OPTIONAL:
        return _OPTIONAL[key]
    if key not in raw:
        raise RefusedError(f"{path}: key '{key}' is missing; wanted {field.wanted}")
    field.check(path, key, raw[key])
    return raw[key]


def _rope(path: Path, raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """The rotary base and its scaling, from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters`."""
    blocks = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key) is not None}
    for key, block in blocks.items():
        if not isinstance(block, dict):
            raise RefusedError(f"{path}: {key} is {shown(block)}; wanted an object or null")
    found = [_rope_block(path, key, block) for key, block in blocks.items()]
    bases = {block["rope_theta"] for block in blocks.values() if block.get("rope_theta") is not None}
    if raw.get("rope_theta") is not None:
        _THETA.check(path, "rope_theta", raw["rope_theta"])
        bases.add(raw["rope_theta"])
    if len(bases) > 1 or any(other != found[0] for other in found):
        raise RefusedError(
            f"{path}: rope_theta, rope_scaling and rope_parameters contradict each other; keep one spelling"
        )
    return float(next(iter(bases), _USUAL_THETA)), found[0] if found else None


def _rope_block(path: Path, key: str, block: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that a `rope_scaling` or `rope_parameters` describes; its base is looked at too."""
    kind = block.get("rope_type", block.get("type", "default"))
    known = {"rope_type", "type", "rope_theta", *(_SCALING if kind == "llama3" else ())}
    if kind not in ("default", "llama3"):
        raise RefusedError(
            f"{path}: {key} has rope_type {shown(kind)}; wanted default or llama3: no other is supported"
        )
    for name in block:
        if name not in known:
            raise RefusedError(f"{path}: {key} has a key '{name}' that rope_type {kind} does not have")
    if block.get("rope_theta") is not None:
        _THETA.check(path, f"{key}.rope_theta", block["rope_theta"])
    if kind == "default":
        return None
    values: dict[str, Any] = {}
    for name, (ours, field) in _SCALING.items():
        if name not in block:
            raise RefusedError(f"{path}: {key} lacks {name}; wanted {field.wanted}")
        field.check(path, f"{key}.{name}", block[name])
        values[ours] = block[name] if field.kind is int else float(block[name])
    if values["low_freq_factor"] >= values["high_freq_factor"]:
        raise RefusedError(
            f"{path}: {key}.low_freq_factor={values['low_freq_factor']:g} is not below "
            f"high_freq_factor={values['high_freq_factor']:g}"
        )
    return RopeScaling(**values)


def config_of(params: Params, dtype: str, tied: bool, end_tokens: Mapping[str, object]) -> dict[str, object]:
    """The content of a config.json that `read_config` reads as `params`, in every number.

    `end_tokens`: bos_token_id and eos_token_id, where they are known.
    """
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "head_dim": params.head_dim,
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "initializer_range": 0.02,
        "intermediate_size": params.ffn_dim,
        "max_position_embeddings": usual_context(params),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": params.n_heads,
        "num_hidden_layers": params.n_layers,
        "num_key_value_heads": params.n_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": params.norm_eps,
        "rope_scaling": None,
        "rope_theta": params.rope_theta,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": params.vocab_size,
        **end_tokens,
    }
    if params.rope_scaling is not None:
        scaling = {name: getattr(params.rope_scaling, ours) for name, (ours, _) in _SCALING.items()}
        config["rope_scaling"] = {**scaling, "rope_type": "llama3"}
    return config


def usual_context(params: Params) -> int:
    """The tokens that a model of this generation was made for: a guess, since Meta's files do not say.

    Told by the rotary base and its scaling, the vocabulary, and what only Llama 1 has (an eps of 1e-6).
    """
    if params.rope_scaling is not None:
        return 131072
    if params.rope_theta >= 1e6:
        return 16384
    if params.vocab_size == LLAMA_3_VOCABULARY:
        return 8192
    return 2048 if params.norm_eps < 1e-5 else 4096
