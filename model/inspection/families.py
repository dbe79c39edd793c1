"""Which published models have a model's shape: told to the user, and nothing is derived from it.

A shape is not an origin: whoever trains a model of his own may take a published shape. Where several models
have the same one, the vocabulary and the rotary base tell some of them apart. The sizes are those of the
published params.json files.
"""

from collections.abc import Callable
from dataclasses import dataclass

from model.params import LLAMA_3_VOCABULARY, Params
from parallel.errors import one_of

_LLAMA_1, _LLAMA_3 = (32000,), (LLAMA_3_VOCABULARY,)
# With and without the pieces for infilling.
_CODE = (32000, 32016)
_CODE_BASE = (1e6,)


@dataclass(frozen=True, slots=True)
class _Published:
    """A published model. `sizes`: width, layers, heads, KV heads, feed-forward width; `factor`: by which its
    slow rotary frequencies are divided, None where they are not."""

    name: str
    sizes: tuple[int, int, int, int, int]
    vocabularies: tuple[int, ...]
    bases: tuple[float, ...] = (1e4,)
    factor: float | None = None


_7B, _13B = (4096, 32, 32, 32, 11008), (5120, 40, 40, 40, 13824)
_70B = (8192, 80, 64, 8, 28672)
_405B = (16384, 126, 128, 8, 53248)
_LLAMA_3_BASE = (5e5,)
_PUBLISHED = (
    _Published("Llama 1 7B", _7B, _LLAMA_1),
    _Published("Llama 1 13B", _13B, _LLAMA_1),
    _Published("Llama 1 30B", (6656, 60, 52, 52, 17920), _LLAMA_1),
    _Published("Llama 1 65B", (8192, 80, 64, 64, 22016), _LLAMA_1),
    _Published("Llama 2 7B", _7B, _LLAMA_1),
    _Published("Llama 2 13B", _13B, _LLAMA_1),
    _Published("Llama 2 70B", _70B, _LLAMA_1),
    _Published("Code Llama 7B", _7B, _CODE, _CODE_BASE),
    _Published("Code Llama 13B", _13B, _CODE, _CODE_BASE),
    _Published("Code Llama 34B", (8192, 48, 64, 8, 22016), (32000,), _CODE_BASE),
    # Its Python and Instruct variants kept Llama 2's base (codellama, issue 188).
    _Published("Code Llama 70B", _70B, (32016,), (1e4, 1e6)),
    _Published("Llama 3 8B", (4096, 32, 32, 8, 14336), _LLAMA_3, _LLAMA_3_BASE),
    _Published("Llama 3.1 8B", (4096, 32, 32, 8, 14336), _LLAMA_3, _LLAMA_3_BASE, 8.0),
    _Published("Llama 3 70B", _70B, _LLAMA_3, _LLAMA_3_BASE),
    _Published("Llama 3.1 70B", _70B, _LLAMA_3, _LLAMA_3_BASE, 8.0),
    _Published("Llama 3.3 70B", _70B, _LLAMA_3, _LLAMA_3_BASE, 8.0),
    _Published("Llama 3.1 405B", _405B, _LLAMA_3, _LLAMA_3_BASE, 8.0),
    # params.json of these files counts each KV head as often as it is stored.
    _Published("Llama 3.1 405B (MP 16)", (16384, 126, 128, 16, 53248), _LLAMA_3, _LLAMA_3_BASE, 8.0),
    _Published("Llama 3.2 1B", (2048, 16, 32, 8, 8192), _LLAMA_3, _LLAMA_3_BASE, 32.0),
    _Published("Llama 3.2 3B", (3072, 28, 24, 8, 8192), _LLAMA_3, _LLAMA_3_BASE, 32.0),
)


def family_of(params: Params) -> str:
    """'the shape of Llama 2 7B or Code Llama 7B', with what none of them has, or 'no published shape'."""
    sizes = (params.dim, params.n_layers, params.n_heads, params.n_kv_heads, params.ffn_dim)
    found = [model for model in _PUBLISHED if model.sizes == sizes]
    if not found:
        return "no published shape"
    unlike = []
    for words, fits in _traits(params):
        fitting = [model for model in found if fits(model)]
        if fitting:
            found = fitting
        else:
            unlike.append(words)
    text = f"the shape of {one_of([model.name for model in found])}"
    return f"{text}, but with {' and '.join(unlike)}" if unlike else text


def _traits(params: Params) -> list[tuple[str, Callable[[_Published], bool]]]:
    """What tells models of one shape apart, in words, and whether a published one has it."""
    size, base, scaling = params.vocab_size, params.rope_theta, params.rope_scaling
    factor = None if scaling is None else scaling.factor
    scaled = "rotary frequencies that are not scaled" if factor is None else f"rotary frequencies scaled by {factor:g}"
    return [
        (f"a vocabulary of {size}", lambda model: size in (-1, *model.vocabularies)),
        (f"a rotary base of {base:g}", lambda model: base in model.bases),
        (scaled, lambda model: factor == model.factor),
    ]
