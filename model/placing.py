"""Which dtype the weights take on a device, and whether they fit, asked before anything is loaded."""

from math import prod

import torch

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.files import DTYPE_BYTES
from model.cuts import all_weights
from model.host import available_host_bytes, name_dtype
from model.params import Params
from model.planning.host_memory import host_memories
from model.quantisation import bytes_of, format_of
from model.split import split_of
from parallel import RefusedError
from parallel.kernels.formats import Quantisation


def choose_dtype(asked: str, stored: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and why. `auto`: the file's, but on a CPU none that it computes slowly."""
    name, why = name_dtype(asked, stored, device.type)
    return getattr(torch, name), why


def share_bytes(
    params: Params, mp: int, dtype: torch.dtype, embedding_dim: int = 1, quantize: Quantisation = "none"
) -> int:
    """Bytes of the weights of the rank that has the most."""
    split, totals = split_of(params, mp), [0] * mp
    for weight in all_weights(params, embedding_dim):
        for rank, own in enumerate(weight.slices(split)):
            totals[rank] += bytes_of(weight.shape_of(own), format_of(weight.name, quantize), dtype.itemsize)
    return max(totals)


def private_bytes(
    checkpoint: Checkpoint, ranks: int, dtype: torch.dtype, device: torch.device, quantize: Quantisation = "none"
) -> int:
    """Bytes that the weights of the rank that takes most need beside the mapped files, at their worst moment."""
    if device.type != "cpu":
        share = share_bytes(checkpoint.params, ranks, dtype, checkpoint.embedding_dim, quantize)
        return share + _largest_passing_bytes(checkpoint, ranks, quantize)
    name = str(dtype).removeprefix("torch.")
    memories = host_memories(checkpoint, checkpoint.split(ranks), name, "cpu", quantize)
    return max(memory.copied_bytes for memory in memories)


def _largest_passing_bytes(checkpoint: Checkpoint, ranks: int, quantize: Quantisation) -> int:
    """Of the weight as it is stored that stands on a GPU while it is quantised."""
    split = checkpoint.split(ranks)
    sizes = (
        prod(weight.shape_of(own)) * DTYPE_BYTES[piece.entry.dtype]
        for weight in checkpoint.weights
        if format_of(weight.name, quantize) != "none"
        for own in weight.slices(split)
        for piece in checkpoint.pieces[weight.name][:1]
    )
    return max(sizes, default=0)


def check_room(needed_bytes: int, device: torch.device, local_ranks: int, what: str) -> None:
    """Refuse where `needed_bytes` on each of this host's ranks are more than is free now."""
    if device.type == "cuda":
        # What torch's allocator keeps for reuse counts as free; ranks may share a GPU.
        cached_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free_bytes, where = torch.cuda.mem_get_info(device)[0] + cached_bytes, f"on {device}"
        together = needed_bytes * -(-local_ranks // torch.cuda.device_count())
    else:
        free_bytes, where, together = available_host_bytes(), "on this host", needed_bytes * local_ranks
    if together > free_bytes:
        raise RefusedError(
            f"{what}: {together} bytes ({together / 1e9:.2f} GB) are needed {where}, {free_bytes} "
            f"({free_bytes / 1e9:.2f} GB) "
            "are free; use more ranks on more devices, a smaller dtype, or a smaller batch and max_seq_len"
        )
