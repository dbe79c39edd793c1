"""Code Llama's infilling prompts: the text around a gap, to token ids (codellama `generation.py`, `tokenizer.py`)."""

from model.params import Params
from model.tokenizers.base import Tokenizer, check_text
from model.tokenizers.sentencepiece_file import INFILL_PIECES
from parallel.errors import RefusedError

FILL_ME = "<FILL_ME>"
_PREFIX, _MIDDLE, _SUFFIX, _END = INFILL_PIECES
# Takes upon itself the space that SentencePiece puts before a text; Code Llama was trained with this one.
_MARK = "\u263a"
# Layers of the sizes that were not trained to infill; both are this wide.
_UNTRAINED_DIM = 8192
_UNTRAINED = {48: "34B", 80: "70B"}


def check_can_infill(params: Params, tokenizer: Tokenizer) -> None:
    """RefusedError says why a model cannot infill: it has no marks for it, or was not trained to."""
    if missing := [piece for piece in INFILL_PIECES if piece not in tokenizer.specials]:
        raise RefusedError(
            f"{tokenizer.path}: has no {', '.join(missing)}, without which a model cannot infill: Llama 2 and 3 and "
            "Code Llama - Python have none, and Code Llama 34B and 70B were not trained to infill; use Code Llama 7B "
            "or 13B, or their Instruct"
        )
    if params.dim == _UNTRAINED_DIM and params.n_layers in _UNTRAINED:
        raise RefusedError(
            f"the model has dim {params.dim} and {params.n_layers} layers, the sizes of Code Llama "
            f"{_UNTRAINED[params.n_layers]}; Code Llama 34B and 70B were not trained to infill: use Code Llama 7B or "
            "13B, or their Instruct"
        )


def split_prompt(prompt: object, index: int) -> tuple[str, str]:
    """The text before the gap and the text behind it; RefusedError names the prompt's index."""
    if not isinstance(prompt, str):
        raise RefusedError(f"prompt {index} is {prompt!r}; wanted a text")
    prefix, *suffixes = prompt.split(FILL_ME)
    if len(suffixes) != 1:
        how = f"is in it {len(suffixes)} times" if suffixes else "is not in it"
        raise RefusedError(
            f"prompt {index} cannot be infilled: {FILL_ME} {how}; write it once, where text is wanted, "
            f"as in 'def add(a, b):\\n    {FILL_ME}\\n    return c'"
        )
    return prefix, suffixes[0]


def infill_ids(tokenizer: Tokenizer, prefix: str, suffix: str, suffix_first: bool = False) -> list[int]:
    """Ids of a prompt whose answer belongs between `prefix` and `suffix`; `check_can_infill` comes first.

    `suffix_first` writes the suffix before the prefix, the other order that Code Llama was trained with.
    """
    mark = tokenizer.specials
    before, behind = tokenizer.encode(prefix, bos=False, eos=False), _encode_suffix(tokenizer, suffix)
    if suffix_first:
        return [tokenizer.bos_id, mark[_PREFIX], mark[_SUFFIX], *behind, mark[_MIDDLE], *before]
    return [tokenizer.bos_id, mark[_PREFIX], *before, mark[_SUFFIX], *behind, mark[_MIDDLE]]


def infill_context(tokenizer: Tokenizer) -> list[int]:
    """What the ids of an answer are decoded behind, so that a space that it begins with is kept."""
    return tokenizer.encode(_MARK, bos=False, eos=False)


def infill_stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """What ends an answer: the mark of its end, and what ends any text."""
    return tokenizer.stop_ids | {tokenizer.specials[_END]}


def _encode_suffix(tokenizer: Tokenizer, suffix: str) -> list[int]:
    """Ids of `suffix` without the space that stands before a text of its own."""
    check_text(suffix)
    mark = infill_context(tokenizer)
    ids = tokenizer.encode(_MARK + suffix, bos=False, eos=False)
    if ids[: len(mark)] != mark:
        raise RefusedError(
            f"{tokenizer.path}: makes one piece of {_MARK} and what stands behind {FILL_ME} ({suffix[:10]!r}), which "
            "Code Llama's does not; give the model's own tokenizer with --tokenizer_path"
        )
    return ids[len(mark) :]
