"""Parts of a Hugging Face tokenizer.json (github.com/huggingface/tokenizers): plain JSON, made without the package."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.tokenizers.tiktoken_file import PATTERN as PATTERN

VERSION = {"version": "1.0", "truncation": None, "padding": None}


def added_token(number: int, text: str, special: bool = True) -> dict[str, Any]:
    """A token that is looked for before text is parted: as typed if `special`, else after normalising."""
    fixed = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": number, "content": text, **fixed, "special": special}


def bos_first(bos: str, number: int) -> dict[str, Any]:
    """The post-processor that puts bos before each text."""
    mark = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def byte_pairs(vocabulary: Mapping[str, int], merges: Sequence[str], **how: object) -> dict[str, Any]:
    """The model that merges pairs; `how`: its settings that are not the usual ones."""
    usual = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    settled = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **usual, **settled, **how, "vocab": dict(vocabulary), "merges": list(merges)}


def merges_of(ranks: Mapping[str, float], vocabulary: Mapping[str, int]) -> list[str]:
    """Every pair of tokens that makes a third, the lowest rank of the third first: so pairs are merged by the rank
    of what they make, as SentencePiece and tiktoken do."""
    found = [
        (rank, vocabulary[text[:place]], vocabulary[text[place:]], text[:place], text[place:])
        for text, rank in ranks.items()
        for place in range(1, len(text))
        if text[:place] in ranks and text[place:] in ranks
    ]
    return [f"{left} {right}" for *_, left, right in sorted(found)]


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a tokenizer.json: itself where it can be seen, else U+0100 and on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(unseen)) for byte in range(256)]


def llama_3_json(
    vocabulary: Mapping[str, int], merges: Sequence[str], added: Sequence[Mapping[str, Any]], bos: str, bos_id: int
) -> dict[str, Any]:
    """The tokenizer.json of a vocabulary of `byte_letters`, which parts text as Llama 3 does."""
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        **VERSION,
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": bos_first(bos, bos_id),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        # tiktoken takes a word that is a token as it is, without merging.
        "model": byte_pairs(vocabulary, merges, ignore_merges=True),
    }
