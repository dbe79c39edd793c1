"""One rank, or one process alone: from its options to its results."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.console import ProgressLine, print_result
from launcher.options import CompleteOptions
from launcher.preflight import Ready, preflight
from launcher.requests import prompts_file
from launcher.version import version
from model.generate import Event, FinishReason
from model.llama import Llama
from model.tokenizers.base import TextStream
from parallel import World, start_world

log = logging.getLogger("shardrun")


@dataclass(slots=True)
class Answer:
    """What came back for one prompt."""

    index: int
    prompt: str
    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    finish_reason: FinishReason = "length"

    def take(self, event: Event) -> None:
        if event.token is not None:
            self.tokens.append(event.token)
            if event.logprob is not None:
                self.logprobs.append(event.logprob)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason

    def as_json(self, generation: str, logprobs: bool) -> str:
        known: list[float | None] | None = None
        if logprobs:
            before = [None, *self.prompt_logprobs] if self.prompt_logprobs is not None else []
            known = [*before, *self.logprobs]
        fields = {
            "index": self.index,
            "prompt": self.prompt,
            "generation": generation,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "logprobs": known,
            "finish_reason": self.finish_reason,
        }
        return json.dumps(fields, ensure_ascii=False)


def meet(options: CompleteOptions) -> World:
    """Meet the other ranks and compare every setting with them. Collective."""
    # Files may stand elsewhere on another host; what is in them is compared when they are read.
    elsewhere = {"ckpt_dir", "tokenizer_path"}
    if prompts_file(options.generation.prompts) is not None:
        elsewhere.add("prompts")
    settings = {
        f"{section}.{name}": value
        for section in ("model", "generation")
        for name, value in _fields(getattr(options, section)).items()
        if name not in elsewhere
    }
    settings["shardrun"] = version()
    parallel = options.parallel
    world = start_world(
        device=parallel.device, backend=parallel.backend, settings=settings, timeout_s=parallel.timeout_s
    )
    log.info("%d rank%s: %s", world.mesh.size, "s" if world.mesh.size > 1 else "", world.placement.reason)
    return world


def _fields(section: object) -> dict[str, object]:
    names: tuple[str, ...] = section.__slots__  # type: ignore[attr-defined]
    return {name: getattr(section, name) for name in names}


def complete(options: CompleteOptions, world: World, ready: Ready | None = None) -> None:
    """Load the checkpoint and continue every prompt; rank 0 prints. Collective.

    `ready`: the request, where this is the only process and it was checked before torch was loaded.
    """
    model = options.model
    ready = ready or world.together("checking the request", lambda: preflight(options, world.mesh.size))
    digest = hashlib.sha256(json.dumps(ready.prompt_tokens).encode()).hexdigest()
    world.agree("the request", {"the number of prompts": len(ready.prompts), "the prompts": digest})
    llama = Llama.load(
        ready.found,
        world,
        model.max_seq_len,
        model.max_batch_size,
        options.generation.seed,
        dtype=model.dtype,
        progress=ProgressLine("loading", "GB", 1e9, enabled=world.env.rank == 0),
    )
    if world.env.rank == 0:
        _note_clipping(options, ready)
        _note_unused(options)
    progress = ProgressLine("generating", "prompts", enabled=world.env.rank == 0 and not options.generation.stream)
    # Streamed text of several prompts can only be read one after the other.
    one_by_one = options.generation.stream and not options.generation.json
    batch_size = 1 if one_by_one else model.max_batch_size
    for first in range(0, len(ready.prompts), batch_size):
        last = min(first + batch_size, len(ready.prompts))
        answers = [Answer(i, ready.prompts[i], ready.prompt_tokens[i]) for i in range(first, last)]
        _run_batch(llama, options, answers)
        progress(last, len(ready.prompts))


def _note_unused(options: CompleteOptions) -> None:
    """Say which flags have no effect together."""
    generation = options.generation
    if generation.logprobs and not generation.json:
        log.warning("note: --logprobs shows only with --json")
    if generation.stream and generation.json:
        log.warning("note: with --json each answer is printed when it is complete; --stream has no effect")


def _note_clipping(options: CompleteOptions, ready: Ready) -> None:
    asked, limit = options.generation.max_gen_len, options.model.max_seq_len
    shortest_room = limit - max(map(len, ready.prompt_tokens))
    if asked is not None and asked > shortest_room:
        log.warning(
            "note: max_gen_len %d is clipped: the longest prompt leaves room for %d of max_seq_len %d tokens",
            asked,
            shortest_room,
            limit,
        )


def _run_batch(llama: Llama, options: CompleteOptions, answers: list[Answer]) -> None:
    settings = options.generation
    generation = llama.start(
        [answer.prompt_tokens for answer in answers],
        settings.max_gen_len,
        settings.temperature,
        settings.top_p,
        settings.logprobs,
        settings.echo,
        settings.eos_ids,
    )
    speaks = llama.world.env.rank == 0
    if settings.stream and not settings.json:
        for text in _stream(llama, settings.echo, answers[0], generation.events()):
            if speaks:
                print_result(text)
    else:
        for event in generation.events():
            answers[event.row].take(event)
    if generation.prompt_logprobs:
        for answer, known in zip(answers, generation.prompt_logprobs, strict=True):
            answer.prompt_logprobs = known
    if speaks and (settings.json or not settings.stream):
        for answer in answers:
            print_result(_shown(llama, options, answer))


def _stream(llama: Llama, echo: bool, answer: Answer, events: Iterator[Event]) -> Iterator[str]:
    tokenizer = llama.text_tokenizer()
    if answer.index:
        yield "\n"
    if echo:
        yield tokenizer.decode(answer.prompt_tokens)
    text = TextStream(tokenizer, answer.prompt_tokens if echo else ())
    for event in events:
        answer.take(event)
        if event.token is not None:
            yield text.push(event.token)
    yield text.finish() + "\n"


def _shown(llama: Llama, options: CompleteOptions, answer: Answer) -> str:
    """An answer as it is printed: a JSON object, or text with an empty line before the next."""
    tokenizer, settings = llama.text_tokenizer(), options.generation
    if settings.json:
        return answer.as_json(tokenizer.decode(answer.tokens), settings.logprobs) + "\n"
    ids = [*answer.prompt_tokens, *answer.tokens] if settings.echo else answer.tokens
    return ("\n" if answer.index else "") + tokenizer.decode(ids) + "\n"
