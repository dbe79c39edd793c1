"""Which windows a long text is looked at through, and which tokens are scored in each. Without torch."""

from dataclasses import dataclass

from parallel.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `stop` of a text, of which those from `first` on are scored here."""

    start: int
    stop: int
    first: int


def choose_stride(stride: int | None, max_seq_len: int) -> int:
    """Tokens that a window moves on by (default: half of it). RefusedError where it cannot."""
    if max_seq_len < 2:
        raise RefusedError(
            f"max_seq_len is {max_seq_len}; a token is scored by what stands before it: wanted 2 or more"
        )
    if stride is None:
        return max_seq_len // 2
    if not 1 <= stride <= max_seq_len - 1:
        raise RefusedError(
            f"stride is {stride} but max_seq_len is {max_seq_len}; a window must begin with a token of the one before "
            f"it: give a stride of 1 to {max_seq_len - 1}, or raise max_seq_len"
        )
    return stride


def windows_of(tokens: int, max_seq_len: int, stride: int) -> list[Window]:
    """The windows of a text of 2 tokens or more, each `stride` tokens behind the one before.

    Every token but the first is scored once: in the first window that holds it, by what stands before it there. So
    behind the first window that is max_seq_len - stride tokens at the least.
    """
    found = [Window(0, min(tokens, max_seq_len), 1)]
    while (scored := found[-1].stop) < tokens:
        start = found[-1].start + stride
        found.append(Window(start, min(tokens, start + max_seq_len), scored))
    return found
