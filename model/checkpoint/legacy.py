"""Files of torch before 1.6: bare pickles without checksums, read only where the user asks for it."""

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint.files import DTYPE_BYTES, FileHeader, FileStamp, TensorEntry, open_regular
from parallel.errors import RefusedError

if TYPE_CHECKING:
    from torch import Tensor


def load_legacy(path: Path) -> "dict[str, Tensor]":
    """The tensors of a legacy file, in private memory. torch's weights-only unpickler runs no code of the file's."""
    import torch  # only here: headers of today's files are read without it

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, with advice that we do not pass on
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {found[1]}" if found else type(error).__name__
        raise RefusedError(
            f"{path}: is a legacy file that torch's weights-only reader refuses ({reason}); "
            "nothing of it was executed. Get the weights from a source that you trust"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RefusedError(f"{path}: does not hold a dictionary of names and tensors")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise RefusedError(f"{path}: {name} is not a plain, contiguous tensor")
    return {str(name): tensor for name, tensor in state.items()}


def read_legacy_header(path: Path) -> FileHeader:
    """A header like that of a zip file, computed from the loaded tensors."""
    import torch

    with open_regular(path) as file:
        stamp = FileStamp.of(file)
    entries: dict[str, TensorEntry] = {}
    for name, tensor in load_legacy(path).items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise RefusedError(f"{path}: {name} has dtype {dtype}; wanted {', '.join(DTYPE_BYTES)}")
        crc32 = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data)
        nbytes = tensor.numel() * tensor.element_size()
        # One record for all: the file can only be read, and so checked, as a whole.
        entries[name] = TensorEntry(name, dtype, tuple(tensor.shape), "data", 0, nbytes, crc32, 0)
    return FileHeader(path, stamp, entries, kind="legacy")
