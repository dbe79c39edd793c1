"""What can be known before a process is started or a weight is read: files, sizes, prompts. Without torch."""

from dataclasses import dataclass

from launcher.options import CompleteOptions
from launcher.requests import read_prompts
from model.looking import Found, look
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Ready:
    """A request that can be run, as far as headers tell."""

    found: Found
    prompts: list[str]
    prompt_tokens: list[list[int]]


def preflight(options: CompleteOptions, ranks: int) -> Ready:
    """Check the checkpoint against the number of ranks, the tokenizer against the checkpoint, and every prompt.

    RefusedError says what is wrong and what to do.
    """
    model, generation = options.model, options.generation
    _check_ranks(options, ranks)
    found = look(
        model.ckpt_dir,
        model.tokenizer_path,
        ranks,
        allow_legacy=model.allow_legacy,
        strict_mp=options.parallel.strict_mp,
    )
    checkpoint, tokenizer = found.checkpoint, found.tokenizer
    if tokenizer is None:
        raise RefusedError(
            f"{checkpoint.folder}: holds no tokenizer.model or tokenizer.json, nor does its parent; give one with "
            "--tokenizer_path"
        )
    prompts = read_prompts(generation.prompts)
    tokens = [_encode(tokenizer, prompt, index, model.max_seq_len) for index, prompt in enumerate(prompts)]
    for token in generation.eos_ids or []:
        if token >= checkpoint.params.vocab_size:
            raise RefusedError(f"--eos_ids holds {token}; wanted token ids of 0 to {checkpoint.params.vocab_size - 1}")
    return Ready(found, prompts, tokens)


def _check_ranks(options: CompleteOptions, ranks: int) -> None:
    asked = options.parallel.model_parallel_size
    if asked not in (None, ranks):
        raise RefusedError(
            f"--model_parallel_size is {asked} but the world has {ranks} "
            f"rank{'s' if ranks > 1 else ''}; MP is the number of "
            f"ranks: start {asked} (--nproc_per_node {asked}), or leave the flag out"
        )


def _encode(tokenizer: Tokenizer, prompt: str, index: int, max_seq_len: int) -> list[int]:
    try:
        ids = tokenizer.encode(prompt, bos=True, eos=False)
    except RefusedError as error:
        raise RefusedError(f"prompt {index}: {error}") from None
    if len(ids) > max_seq_len:
        raise RefusedError(
            f"prompt {index} has {len(ids)} tokens but max_seq_len is {max_seq_len}; shorten it, or raise --max_seq_len"
        )
    return ids
