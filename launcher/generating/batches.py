"""Many requests in batches of like lengths, in an order that lets the first answers come soon."""

from collections.abc import Iterator, Sequence

from launcher.generating.requests import Request

# Batches that are sorted by length among themselves. More would waste less on padding, but hold answers back longer,
# and let a killed run lose more of them.
WINDOW_BATCHES = 8


def batches_of(requests: Sequence[Request], batch_size: int, first: int = 0) -> Iterator[list[Request]]:
    """The batches of what is to be run; those that hold nothing from request `first` on are left out.

    Which requests share a batch depends on the whole list alone, so a run that goes on at `first` makes the same
    batches, and so the same numbers, as one that was not interrupted. Windows grow: the first is a single batch, so
    that somebody who waits for the first answer does not wait for those of many.
    """
    to_run = [request for request in requests if request.to_run]
    start, window_batches = 0, 1
    while start < len(to_run):
        stop = start + batch_size * window_batches
        # The longest first: if anything does not fit, it shows at once.
        window = sorted(to_run[start:stop], key=lambda request: (-request.length, request.index))
        for at in range(0, len(window), batch_size):
            batch = window[at : at + batch_size]
            if any(request.index >= first for request in batch):
                yield batch
        start, window_batches = stop, min(2 * window_batches, WINDOW_BATCHES)
