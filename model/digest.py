"""Numbers that stand for the bits of tensors, so that these can be compared without being sent."""

import torch
from torch import Tensor

# As whole numbers, so that every bit counts: those of a NaN and the sign of a zero too.
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
# Products of so many words stay in the cache of a CPU.
_CHUNK_WORDS = 2**16


def digests(x: Tensor) -> Tensor:
    """A number for each x[i], int64 on x's device; to be compared among tensors of one shape and dtype.

    It is the sum of the words of x[i], each times its place 1, 3, 5, ..., modulo 2**64. A change of one word, or two
    different words that change places, always give another number: an odd number times a difference other than 0 is
    not 0 there, nor is the distance of two places (below 2**31) times a difference of words (below 2**32).
    """
    words_RW = x.flatten(1).view(_WORDS[x.element_size()])
    assert words_RW.shape[1] < 2**30, "places would be too far apart"
    sums_R = torch.zeros(len(words_RW), dtype=torch.int64, device=x.device)
    for start in range(0, words_RW.shape[1], _CHUNK_WORDS):
        part_RW = words_RW[:, start : start + _CHUNK_WORDS]
        places_W = torch.arange(2 * start + 1, 2 * (start + part_RW.shape[1]), 2, device=x.device)
        sums_R += (part_RW * places_W).sum(-1)
    return sums_R
