"""What can be known before a process is started or a weight is read: files, sizes, prompts. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.generating.conversation import conversation_of
from launcher.generating.requests import Request, requests_of
from launcher.settings.options import ChatSection, InfillSection, RunOptions, ScoreSection
from model.exact.blocks import check_exact
from model.generation.settings import How, Settings, check_eos_ids
from model.generation.stopping import check_stops
from model.generation.windows import choose_stride
from model.infill import check_can_infill, infill_context, infill_stop_ids
from model.looking import Found, look
from model.quantisation import check_quantisation
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Requests that can be run, as far as headers tell; none for a chat at the terminal."""

    found: Found
    requests: list[Request]
    # What ends an answer, and what its tokens are decoded behind.
    eos_ids: list[int]
    context: list[int] = field(default_factory=list)

    @property
    def tokenizer(self) -> Tokenizer:
        assert self.found.tokenizer is not None, "preflight refuses where there is none"
        return self.found.tokenizer


def preflight(options: RunOptions, ranks: int) -> Ready:
    """Check the checkpoint against the number of ranks, the tokenizer against the checkpoint, and every request.

    RefusedError says what is wrong and what to do.
    """
    model, section = options.model, options.generation
    _check_ranks(options, ranks)
    _check_settings(options)
    check_quantisation(model.quantize, model.exact)
    found = look(
        model.ckpt_dir,
        model.tokenizer_path,
        ranks,
        allow_legacy=model.allow_legacy,
        strict_mp=options.parallel.strict_mp,
    )
    if model.exact:
        check_exact(found.checkpoint.params, ranks)
    if found.tokenizer is None:
        raise RefusedError(
            f"{found.checkpoint.folder}: holds no tokenizer.model or tokenizer.json, nor does its parent; give one "
            "with --tokenizer_path"
        )
    tokenizer, params = found.tokenizer, found.checkpoint.params
    check_eos_ids(section.eos_ids or [], params.vocab_size)
    usual, context = tokenizer.stop_ids, list[int]()
    if isinstance(section, InfillSection):
        check_can_infill(params, tokenizer)
        usual, context = infill_stop_ids(tokenizer), infill_context(tokenizer)
    elif isinstance(section, ChatSection):
        usual = tokenizer.chat_stop_ids
        if section.dialogs is None:
            conversation_of(options, tokenizer)  # refuses what does not go with one
        elif section.system is not None:
            raise RefusedError("--system begins a chat at the terminal; with --dialogs write it as their first message")
    eos_ids = sorted(usual) if section.eos_ids is None else section.eos_ids
    return Ready(found=found, requests=requests_of(options, tokenizer), eos_ids=eos_ids, context=context)


def how(options: RunOptions, context: Sequence[int] = ()) -> How:
    """What the flags say of a generation beside Meta's arguments; `context`: ids that answers are read behind."""
    section = options.generation
    return How(
        top_k=section.top_k,
        min_p=section.min_p,
        repetition_penalty=section.repetition_penalty,
        num_beams=section.num_beams,
        num_return_sequences=section.num_return_sequences,
        length_penalty=section.length_penalty,
        early_stopping=section.early_stopping,
        penalty_alpha=section.penalty_alpha,
        top_logprobs=section.top_logprobs,
        stop=tuple(section.stop or ()),
        context=tuple(context),
    )


def _check_ranks(options: RunOptions, ranks: int) -> None:
    asked = options.parallel.model_parallel_size
    if asked not in (None, ranks):
        raise RefusedError(
            f"--model_parallel_size is {asked} but the world has {ranks} "
            f"rank{'s' if ranks > 1 else ''}; MP is the number of "
            f"ranks: start {asked} (--nproc_per_node {asked}), or leave the flag out"
        )


def _check_settings(options: RunOptions) -> None:
    """Refuse settings that do not go together."""
    section, limit = options.generation, options.model.max_batch_size
    if section.resume and not section.output:
        raise RefusedError("--resume goes on with a file of answers; name it with --output")
    if isinstance(section, ScoreSection):
        choose_stride(section.stride, options.model.max_seq_len)
        return
    check_stops(section.stop or ())
    settings = Settings(
        max_gen_len=section.max_gen_len or 1,
        max_seq_len=options.model.max_seq_len,
        temperature=section.temperature,
        top_p=section.top_p,
        **how(options),
    )
    if settings.width > limit:
        raise RefusedError(
            f"each prompt has {settings.width} sequences (--num_beams, --num_return_sequences) but --max_batch_size "
            f"is {limit}, which counts sequences; ask for fewer, or raise --max_batch_size"
        )
    if section.stream and (settings.width > 1 or section.output):
        why = "--output writes whole answers" if section.output else f"there are {settings.width} sequences at a time"
        raise RefusedError(f"--stream cannot be, because {why}; leave it out")
