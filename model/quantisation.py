"""Which weights become small whole numbers, and the bytes that they take then. Arithmetic only; no torch.

The matrices of all layers and `output` do, for a step of decoding reads every one of them whole. `output` has at most
int8: each logit is one of its rows, and what int4 saves there is little (docs/adr/0018-quantised-weights.md). Of
tok_embeddings a step reads a row, and the norms are small: they stay as they are.
"""

from math import prod
from typing import get_args

from parallel.errors import RefusedError, one_of
from parallel.kernels.formats import Quantisation, quantised_bytes

_OF_LAYERS = frozenset({"wq", "wk", "wv", "wo", "w1", "w2", "w3"})


def check_quantisation(quantize: str, exact: bool) -> Quantisation:
    """`quantize` as it was asked for. RefusedError where there is no such thing, or not in the exact mode."""
    choices: tuple[Quantisation, ...] = get_args(Quantisation)
    found = next((one for one in choices if one == quantize), None)
    if found is None:
        raise RefusedError(f"quantize is {quantize!r}; wanted {one_of([str(one) for one in choices])}")
    if exact and found != "none":
        raise RefusedError(
            f"--exact and --quantize {quantize} do not go together: the exact mode is for sums that are the same to "
            "the bit at every MP, and it was made and tested for plain weights only; leave one of them out"
        )
    return found


def format_of(name: str, quantize: Quantisation) -> Quantisation:
    """What the weight of this name (Meta's) becomes."""
    part = name.split(".")[-2]
    if part == "output" and quantize == "int4":
        return "int8"
    return quantize if part in _OF_LAYERS or part == "output" else "none"


def bytes_of(shape: tuple[int, ...], quantisation: Quantisation, itemsize: int) -> int:
    """Of a weight's slice; `itemsize`: of its numbers, where they stay as they are."""
    return prod(shape) * itemsize if quantisation == "none" else quantised_bytes(quantisation, *shape)
