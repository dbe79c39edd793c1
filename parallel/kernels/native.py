"""The C++ kernels as functions of tensors, and when they can be used. Structures as in products.h and steps.cpp."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallel.kernels.building import library
from parallel.kernels.calls import call
from parallel.kernels.gradients import wanted
from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight, Weight

# products.h: kMostRows. More rows keep the processor busier than the memory, and torch's products are better then.
MOST_ROWS = 8
_PLAIN, _INT8, _INT4 = range(3)
_DTYPES = (torch.float32, torch.bfloat16)


class _Matrix(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("out", ctypes.c_int64))


class _Products(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "bfloat16", "gated", "count", "rows", "threads")),
        *((name, ctypes.c_void_p) for name in ("matrices", "x", "y")),
        ("width", ctypes.c_int64),
    )


class _WriteOut(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "bfloat16", "threads")),
        *((name, ctypes.c_void_p) for name in ("matrix", "y")),
        ("width", ctypes.c_int64),
    )


class _AddNorm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bfloat16", "rows")),
        *((name, ctypes.c_void_p) for name in ("x", "more", "weight", "y")),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bfloat16", "threads")),
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "keys", "values", "turns", "places")),
        *((name, ctypes.c_void_p) for name in ("queries", "first_queries")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "max_places", "width")),
    )


def usable(x: Tensor, rows: int) -> bool:
    """Whether these kernels can work on `x`, seen as so many rows: few of them, on a CPU, without a gradient."""
    return (
        rows <= MOST_ROWS and x.device.type == "cpu" and x.dtype in _DTYPES and not wanted(x) and library() is not None
    )


def readable(weights: Sequence[Weight], dtype: torch.dtype) -> bool:
    """Whether these weights can be read as they stand, for rows of `dtype`."""
    if isinstance(weights[0], QuantisedWeight):
        return len({type(weight) for weight in weights}) == 1
    alike = all(isinstance(weight, Tensor) and weight.dtype is dtype and weight.is_contiguous() for weight in weights)
    return alike and not wanted(*weights)


def products(x: Tensor, weights: Sequence[Weight], gated: bool = False) -> Tensor:
    """x [..., in] with each weight [out, in], side by side: [..., sum of out]. `gated`: silu of the first product,
    times the second, [..., out]. Where `usable` and `readable`."""
    x = x.contiguous()
    width = x.shape[-1]
    outs = [weight.shape[0] for weight in weights]
    assert all(weight.shape[1] == width for weight in weights), f"x is {width} wide, the weights are not"
    y = x.new_empty((*x.shape[:-1], outs[0] if gated else sum(outs)))
    matrices = _matrices(weights)
    arguments = _Products(
        kind=_kind(weights[0]),
        bfloat16=x.dtype is torch.bfloat16,
        gated=gated,
        count=len(weights),
        rows=x.numel() // width,
        threads=torch.get_num_threads(),
        matrices=ctypes.addressof(matrices),
        x=x.data_ptr(),
        y=y.data_ptr(),
        width=width,
    )
    call("shardrun_products", arguments, matrices, weights, x, y)
    return y


def _kind(weight: Weight) -> int:
    return _INT8 if isinstance(weight, Int8Weight) else _INT4 if isinstance(weight, Int4Weight) else _PLAIN


def _matrices(weights: Sequence[Weight]) -> Any:
    found = (_Matrix * len(weights))()
    for matrix, weight in zip(found, weights, strict=True):
        if isinstance(weight, QuantisedWeight):
            matrix.numbers, matrix.scales = weight.numbers.data_ptr(), weight.scales.data_ptr()
        else:
            matrix.numbers = weight.data_ptr()
        matrix.out = weight.shape[0]
    return found


def can_write_out(weight: QuantisedWeight, dtype: torch.dtype) -> bool:
    """Whether `write_out` can do this one."""
    return dtype in _DTYPES and weight.numbers.device.type == "cpu" and library() is not None


def write_out(weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """The plain weight [out, in] that a quantised one stands for. Where it `can_write_out`."""
    y = torch.empty(weight.shape, dtype=dtype)
    matrices = _matrices((weight,))
    arguments = _WriteOut(
        kind=_kind(weight),
        bfloat16=dtype is torch.bfloat16,
        threads=torch.get_num_threads(),
        matrix=ctypes.addressof(matrices),
        y=y.data_ptr(),
        width=weight.in_features,
    )
    call("shardrun_write_out", arguments, matrices, weight, y)
    return y


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x += more, where there is more; then x / rms(x) * weight. All contiguous, [..., D]. Where `usable`."""
    y = torch.empty_like(x)
    width = x.shape[-1]
    arguments = _AddNorm(
        bfloat16=x.dtype is torch.bfloat16,
        rows=x.numel() // width,
        x=x.data_ptr(),
        more=None if more is None else more.data_ptr(),
        weight=weight.data_ptr(),
        y=y.data_ptr(),
        width=width,
        eps=eps,
    )
    call("shardrun_add_norm", arguments, x, more, weight, y)
    return y


class Queries:
    """How many queries each KV head serves, as the kernel reads it."""

    def __init__(self, counts: Sequence[int]) -> None:
        array = ctypes.c_int32 * len(counts)
        self.counts = array(*counts)
        self.firsts = array(*(sum(counts[:head]) for head in range(len(counts))))


def attend(
    qkv_BX: Tensor, keys_BkSH: Tensor, values_BkSH: Tensor, turns_Sh2: Tensor, places_B: Tensor, queries: Queries
) -> Tensor:
    """See attention.attend_step. Where `usable`."""
    rows, kv_heads, max_places, width = keys_BkSH.shape
    heads = qkv_BX.shape[-1] // width - 2 * kv_heads
    assert heads == sum(queries.counts) and len(qkv_BX) == len(places_B) == rows, (
        "not as many rows or heads as the cache"
    )
    out = qkv_BX.new_empty((rows, heads * width))
    arguments = _Attention(
        bfloat16=qkv_BX.dtype is torch.bfloat16,
        threads=torch.get_num_threads(),
        qkv=qkv_BX.data_ptr(),
        out=out.data_ptr(),
        keys=keys_BkSH.data_ptr(),
        values=values_BkSH.data_ptr(),
        turns=turns_Sh2.data_ptr(),
        places=places_B.data_ptr(),
        queries=ctypes.addressof(queries.counts),
        first_queries=ctypes.addressof(queries.firsts),
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        max_places=max_places,
        width=width,
    )
    call("shardrun_attend", arguments, qkv_BX, out, keys_BkSH, values_BkSH, turns_Sh2, places_B, queries)
    return out
