"""Llama 3's `tokenizer.model`: a byte-pair vocabulary in lines of base64 and rank. The one door to tiktoken.

tiktoken's own loader keeps a copy of every file by its path, and does not see that the file was changed:
the lines are read here, and only `tiktoken.Encoding` is used.
"""

import base64
import binascii
import re
from itertools import pairwise
from pathlib import Path

import tiktoken

from model.checkpoint.files import open_regular
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError

# How text is split before pairs are merged (llama3 `tokenizer.py`).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The control tokens in the order of their ids, which begin behind the ranks, by the names of Llama 3.1
# (llama-models `models/llama3/tokenizer.py`). Llama 3 has the same ids for those that it has.
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_CONTROL_TOKENS = 256
_RESERVED = tuple(f"<|reserved_special_token_{number}|>" for number in range(2, 2 + _CONTROL_TOKENS - len(_NAMED)))
SPECIALS = _NAMED + _RESERVED
# Characters given to tiktoken at a time, and of those in a row that are all white space or all not: its regular
# expressions fail on a million. Same numbers as llama3's, because a cut changes the ids around it.
_MOST_AT_A_TIME = 400_000
_MOST_IN_A_ROW = 25_000


class TiktokenTokenizer(Tokenizer):
    """A `tokenizer.model` of Llama 3 and later: n ranks and 256 control tokens behind them."""

    kind = "tiktoken"

    def __init__(self, path: Path) -> None:
        ranks = read_ranks(path)
        self.path = path
        self._n_ranks = len(ranks)
        self.n_words = self._n_ranks + _CONTROL_TOKENS
        self.specials = {name: self._n_ranks + place for place, name in enumerate(SPECIALS)}
        self.bos_id = self.specials["<|begin_of_text|>"]
        self.eos_id = self.specials["<|end_of_text|>"]
        self.pad_id = -1
        self.stop_ids = frozenset({self.eos_id})
        self._encoding = tiktoken.Encoding(
            name=path.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=dict(self.specials)
        )

    def _encode(self, text: str) -> list[int]:
        return [token for part in cut_long_runs(text) for token in self._encoding.encode_ordinary(part)]

    def _decode(self, ids: list[int]) -> str:
        kept = [token for token in ids if token < self._n_ranks]
        return self._encoding.decode_bytes(kept).decode("utf-8", errors="replace")


def read_ranks(path: Path) -> dict[bytes, int]:
    """Ranks 0 to n-1 by the bytes of their tokens. RefusedError names the line that is not as it must be."""
    with open_regular(path) as file:
        lines = file.read().splitlines()
    ranks: dict[bytes, int] = {}
    line_of: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        token, rank = _read_line(f"{path}:{number}", line)
        if token in ranks:
            raise _damaged(f"{path}:{number}", f"holds the token of line {line_of[ranks[token]]} again")
        if rank in line_of:
            raise _damaged(f"{path}:{number}", f"holds the rank {rank} of line {line_of[rank]} again")
        ranks[token], line_of[rank] = rank, number
    if max(line_of, default=-1) != len(ranks) - 1:
        missing = next(rank for rank in range(len(ranks)) if rank not in line_of)
        raise _damaged(str(path), f"has {len(ranks)} lines and ranks up to {max(line_of)}, but no rank {missing}")
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise _damaged(str(path), f"has no token for the byte 0x{byte:02x}, so not every text can be encoded")
    return ranks


def _read_line(place: str, line: bytes) -> tuple[bytes, int]:
    """Token and rank of a line; `place` is the file and the line's number."""
    fields = line.split(b" ")
    if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 9:
        raise _damaged(place, f"is {_shown(line)}; wanted a token in base64, a space and its rank")
    try:
        token = base64.b64decode(fields[0], validate=True)
    except binascii.Error:
        token = b""
    if not token:
        raise _damaged(place, f"{_shown(fields[0])} is not base64")
    return token, int(fields[1])


def _damaged(place: str, what: str) -> RefusedError:
    return RefusedError(f"{place}: {what}; the tiktoken file is damaged: download it again")


def _shown(text: bytes) -> str:
    return repr(text if len(text) <= 60 else text[:60] + b"...")[1:]


def cut_long_runs(text: str) -> list[str]:
    """`text` in parts that tiktoken can encode; in one, unless it is very long or has no white space for long."""
    parts: list[str] = []
    for start in range(0, len(text), _MOST_AT_A_TIME):
        chunk = text[start : start + _MOST_AT_A_TIME]
        cuts = [0, len(chunk)]
        if len(chunk) > _MOST_IN_A_ROW:
            for run in re.finditer(r"\s+|\S+", chunk):
                cuts += range(run.start() + _MOST_IN_A_ROW, run.end(), _MOST_IN_A_ROW)
        parts += [chunk[begin:end] for begin, end in pairwise(sorted(cuts))]
    return parts
