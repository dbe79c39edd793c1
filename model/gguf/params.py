"""The sizes of a Llama, from the metadata of a GGUF file.

Keys that change what is computed are read or refused; the others (names, licences, how it was made) are passed
over. Llama 3.1's scaling of the rotary frequencies has no key: llama.cpp's converter (convert_hf_to_gguf.py,
LlamaModel) writes, as a tensor, by how much each frequency is divided, and the scaling is found again from that.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint.params_json import FIELDS, check_heads
from model.checkpoint.strict_json import Field
from model.params import Params, RopeScaling
from parallel.errors import RefusedError

# What to do where a file asks for something that is computed otherwise.
_OTHERS = "other models than Llama are not supported"
_SIZES = {
    "embedding_length": FIELDS["dim"],
    "block_count": FIELDS["n_layers"],
    "attention.head_count": FIELDS["n_heads"],
    "attention.head_count_kv": FIELDS["n_kv_heads"],
    "feed_forward_length": Field(int, 1, 2**24),
    "attention.layer_norm_rms_epsilon": FIELDS["norm_eps"],
    "rope.freq_base": FIELDS["rope_theta"],
    "vocab_size": Field(int, 1, 2**24),
}
# As llama.cpp reads a file that does not say.
_USUAL = {"rope.freq_base": 10000.0, "attention.head_count_kv": None, "vocab_size": None}
# What a Llama has; anything else under these keys computes something else.
_FIXED: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "use_parallel_residual": (False,),
    "rope.scale_linear": (0, 1),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
}
# Without a factor the second does nothing.
_UNSCALED = ("none", "linear")
_CLOSE = 1e-5


def params_of(path: Path, metadata: Mapping[str, Any], rows: int, divisors: Sequence[float] | None) -> Params:
    """The sizes that the metadata gives. RefusedError names the file, the key, the value and what was wanted.

    `rows`: of the embedding, 0 where there is none. `divisors`: the tensor rope_freqs.weight, one number for
    each rotary frequency.
    """
    _check_kind(path, metadata)
    sizes = {name: _size(path, metadata, f"llama.{name}", name, field) for name, field in _SIZES.items()}
    dim, n_heads = sizes["embedding_length"], sizes["attention.head_count"]
    n_kv_heads = sizes["attention.head_count_kv"] or n_heads
    names = ("llama.embedding_length", "llama.attention.head_count", "llama.attention.head_count_kv")
    check_heads(path, dim, n_heads, n_kv_heads, names)
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        found = metadata.get(f"llama.{name}", dim // n_heads)
        if found != dim // n_heads:
            raise RefusedError(
                f"{path}: llama.{name} is {_shown(found)}; wanted {dim // n_heads}, the width over the heads: heads of "
                "another size, or turned in part, are not supported"
            )
    if rows and sizes["vocab_size"] not in (None, rows):
        raise RefusedError(
            f"{path}: llama.vocab_size is {sizes['vocab_size']}, but token_embd.weight has {rows} rows; the file is "
            "damaged, or was put together of two: get it again"
        )
    theta = _shortest(sizes["rope.freq_base"])
    scaling = None if divisors is None else rope_scaling_of(path, theta, dim // n_heads, divisors)
    scaled = "" if scaling is None else f"; scaled by {scaling.factor:g} (from rope_freqs.weight)"
    return Params(
        dim=dim,
        n_layers=sizes["block_count"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=sizes["feed_forward_length"],
        vocab_size=rows,
        norm_eps=_shortest(sizes["attention.layer_norm_rms_epsilon"]),
        rope_theta=theta,
        rope_scaling=scaling,
        rope_reason=f"base from {path.name}{scaled}",
    )


def _check_kind(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what is not a plain Llama."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise RefusedError(f'{path}: general.architecture is {_shown(architecture)}; wanted "llama": {_OTHERS}')
    for name, wanted in _FIXED.items():
        value = metadata.get(f"llama.{name}", wanted[0])
        if isinstance(value, tuple) or value not in wanted:
            raise RefusedError(f"{path}: llama.{name} is {_shown(value)}; wanted {_shown(wanted[-1])}: {_OTHERS}")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling not in _UNSCALED:
        raise RefusedError(
            f"{path}: llama.rope.scaling.type is {_shown(scaling)}; only Llama 3.1's scaling is supported "
            "(written as the tensor rope_freqs.weight)"
        )


def _size(path: Path, metadata: Mapping[str, Any], key: str, name: str, field: Field) -> Any:
    if key not in metadata and name in _USUAL:
        return _USUAL[name]
    if key not in metadata:
        raise RefusedError(f"{path}: key {key} is missing; wanted {field.wanted}")
    if isinstance(metadata[key], tuple):
        raise RefusedError(
            f"{path}: {key} is a list of {len(metadata[key])}, so its layers differ; wanted one number: {_OTHERS}"
        )
    field.check(path, key, metadata[key])
    return metadata[key]


def _shown(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, tuple) else repr(value)[:80].replace("'", '"')


def _shortest(value: float) -> float:
    """The shortest decimal of a number that the file holds in 32 bits: 1e-05, not 9.99999974e-06."""
    narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else float(value)


def rope_scaling_of(path: Path, theta: float, head_dim: int, divisors: Sequence[float]) -> RopeScaling | None:
    """Llama 3.1's scaling with the bounds that all published models have (1, 4 and 8192 tokens); None for ones only.

    The factor is found from the slowest frequency, which is divided by most, and every divisor is computed
    from it anew. RefusedError where they are not those of the file.
    """
    frequencies = [theta ** (-2 * place / head_dim) for place in range(head_dim // 2)]
    if len(divisors) != len(frequencies):
        raise RefusedError(
            f"{path}: rope_freqs.weight has {len(divisors)} numbers; wanted {len(frequencies)}, half of a head's"
        )
    if all(divisor == 1 for divisor in divisors):
        return None
    kept = _kept(frequencies[-1])
    slowed = 1 / divisors[-1] - kept if divisors[-1] >= 1 else 0
    factor = (1 - kept) / slowed if slowed > 0 else 0
    # The file's numbers have 32 bits: 7.9999998 is 8.
    for near in (round(factor), round(factor, 1), factor):
        if near >= 1 and all(map(partial(_is_divided, factor=near), frequencies, divisors)):
            return RopeScaling(factor=float(near))
    raise RefusedError(
        f"{path}: rope_freqs.weight divides the rotary frequencies otherwise than Llama 3.1 and 3.2 do (by up to "
        f"{max(divisors):g}); no other scaling is supported"
    )


def _is_divided(frequency: float, divisor: float, factor: float) -> bool:
    """True where the scaling by `factor` divides `frequency` by `divisor`."""
    kept = _kept(frequency)
    return abs(divisor * (kept + (1 - kept) / factor) - 1) < _CLOSE


def _kept(frequency: float) -> float:
    """The share of a frequency (radians a token) that is not slowed, 0 to 1 (arXiv:2407.21783, section 3.4)."""
    scaling = RopeScaling(factor=1)
    turns = scaling.old_context_tokens * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return min(max((turns - low) / (high - low), 0.0), 1.0)
