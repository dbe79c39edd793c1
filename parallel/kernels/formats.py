"""The formats of quantised weights: their names, and the bytes of a weight in each. Arithmetic only; no torch."""

from typing import Literal

Quantisation = Literal["none", "int8", "int4"]
# Numbers of a row that share a scale and an offset in int4; products.h knows it too.
GROUP = 64


def quantised_bytes(quantisation: Quantisation, out_features: int, in_features: int) -> int:
    """Of a weight [out, in] and its scales (quantised.py)."""
    assert quantisation != "none"
    if quantisation == "int8":
        return out_features * (in_features + 4)
    groups = -(-in_features // GROUP)
    return out_features * groups * (GROUP // 2 + 4)
