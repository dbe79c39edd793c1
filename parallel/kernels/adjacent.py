"""Tensors that stand behind one another in memory, seen as one: one pass reads them all."""

from collections.abc import Sequence

from torch import Tensor


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensors [n, ...], which differ at most in n, as one view [sum of n, ...]; None where they are not parts of
    one memory, each right behind the one before."""
    first = tensors[0]
    if len(tensors) == 1:
        return first if first.is_contiguous() else None
    memory, end = first.untyped_storage().data_ptr(), first.data_ptr()
    for tensor in tensors:
        alike = tensor.is_contiguous() and tensor.dtype is first.dtype and tensor.shape[1:] == first.shape[1:]
        if not alike or tensor.data_ptr() != end or tensor.untyped_storage().data_ptr() != memory:
            return None
        end += tensor.nbytes
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())
