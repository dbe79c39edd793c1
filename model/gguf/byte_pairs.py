"""Llama 3's byte-pair vocabulary in a GGUF file, as the lines of tiktoken's file or as a tokenizer.json."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from model.gguf.vocabulary import NORMAL, USER_DEFINED, Vocabulary
from model.hugging_face.tokenizer_json import added_token, byte_letters, llama_3_json, merges_of
from model.tokenizers.tiktoken_file import SPECIALS

_MARKS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_RESERVED = "<|reserved_special_token_"


def ranks_of(vocabulary: Vocabulary) -> list[bytes] | None:
    """Tokens by rank, where Meta's file of ranks and its 256 control tokens say all that this vocabulary does.

    So it is where the normal tokens come first, the others are Meta's, in their places (those without a use
    may have any reserved name: they differ between Llama 3, 3.1 and Hugging Face's copies), and pairs are
    merged by the rank of what they make.
    """
    tokens = vocabulary.tokens
    count = len(tokens) - len(SPECIALS)
    if count < 0 or {*vocabulary.kinds[:count]} != {NORMAL} or NORMAL in vocabulary.kinds[count:]:
        return None
    for name, found in zip(SPECIALS, tokens[count:], strict=True):
        if found != name and (name in _MARKS or not found.startswith(_RESERVED)):
            return None
    if vocabulary.end("bos", count) != count or not _by_rank(vocabulary.merges(), tokens[:count]):
        return None
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    if not {*"".join(tokens[:count])} <= byte_of.keys() or not byte_of.keys() <= {*tokens[:count]}:
        return None
    return [bytes(byte_of[letter] for letter in token) for token in tokens[:count]]


def _by_rank(merges: Sequence[str], tokens: Sequence[str]) -> bool:
    """True where every pair that makes a token is merged, and none before one that makes a token of lower rank."""
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    made = [rank_of.get(merge.replace(" ", ""), -1) for merge in merges]
    in_order = all(before <= after for before, after in pairwise(made))
    return in_order and {*merges} == {*merges_of(rank_of, rank_of)}


def json_files(vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of this vocabulary, which parts text as Llama 3 does."""
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    bos, eos = vocabulary.end("bos"), vocabulary.end("eos")
    words = {token: number for number, token in enumerate(tokens) if kinds[number] == NORMAL}
    added = [
        added_token(number, token, special=kinds[number] != USER_DEFINED or number in (bos, eos))
        for number, token in enumerate(tokens)
        if kinds[number] != NORMAL or number in (bos, eos)
    ]
    config = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "tokenizer.json": llama_3_json(words, vocabulary.merges(), added, tokens[bos], bos),
        "tokenizer_config.json": {"bos_token": tokens[bos], "eos_token": tokens[eos], **config},
    }
