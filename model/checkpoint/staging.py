"""Copies from mapped files to a GPU, through two pinned buffers: one is filled while the other is under way."""

import torch
from torch import Tensor

BUFFER_BYTES = 64 * 2**20


class Stager:
    """Copies tensors of the host to one CUDA device. Memory: two pinned buffers of 64 MiB, for as long as it lives."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers = [torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def copy(self, source: Tensor, place: Tensor) -> None:
        """Bring `source` (on the host, of any strides) to `place` (on the device), in `place`'s dtype.

        Returns while the last bytes are still under way; `wait` waits for them.
        """
        row_bytes = max(1, source[:1].numel() * source.element_size())
        rows = max(1, BUFFER_BYTES // row_bytes)
        for start in range(0, source.shape[0], rows):
            part = source[start : start + rows]
            self._send(part, place[start : start + rows])

    def _send(self, part: Tensor, place: Tensor) -> None:
        nbytes = part.numel() * part.element_size()
        if nbytes > BUFFER_BYTES:  # a row of more than a buffer: no model has one
            place.copy_(part)
            return
        self._turn = 1 - self._turn
        before = self._sent[self._turn]
        if before is not None:
            before.synchronize()
        staged = self._buffers[self._turn][:nbytes].view(part.dtype).view(part.shape)
        staged.copy_(part)
        if place.dtype == part.dtype and place.is_contiguous():
            place.copy_(staged, non_blocking=True)
        else:
            # Converted there: torch would convert on the host before it sends.
            place.copy_(staged.to(self.device, non_blocking=True))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._sent[self._turn] = event

    def wait(self) -> None:
        """Wait until everything has arrived."""
        torch.cuda.synchronize(self.device)
