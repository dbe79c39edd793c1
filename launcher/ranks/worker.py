"""One rank, or one process alone: from its options to its results."""

import logging
from collections.abc import Callable, Set
from dataclasses import Field, fields
from typing import Any

from launcher.console import ProgressLine
from launcher.generating.answering import answer_requests
from launcher.generating.asked import named_file
from launcher.generating.chatting import converse
from launcher.generating.preflight import Ready, preflight
from launcher.generating.requests import digest_of
from launcher.generating.scoring import score_text
from launcher.ranks.inject import Injector
from launcher.settings.options import ChatSection, GenerationSection, RunOptions, ScoreSection
from launcher.version import version
from model.llama import Llama
from parallel import World, start_world

log = logging.getLogger("shardrun")

# What has a meaning where nothing is generated.
_OF_SCORE = frozenset({"seed", "logprobs", "echo", "json", "output", "resume", "bad_lines"})
# Files may stand elsewhere on another host; what is in them is compared when they are read.
_ELSEWHERE = frozenset({"ckpt_dir", "tokenizer_path", "output", "text"})


def meet(options: RunOptions) -> World:
    """Meet the other ranks and compare every setting with them. Collective."""
    settings: dict[str, object] = {"command": options.command}
    for section, values in (("model", options.model), ("generation", options.generation)):
        for field in fields(values):
            value = getattr(values, field.name)
            if field.name not in _ELSEWHERE and not _names_file(value):
                settings[f"{section}.{field.name}"] = value
    settings["shardrun"] = version()
    parallel = options.parallel
    world = start_world(
        device=parallel.device, backend=parallel.backend, settings=settings, timeout_s=parallel.timeout_s
    )
    log.info("%d rank%s: %s", world.mesh.size, "s" if world.mesh.size > 1 else "", world.placement.reason)
    return world


def _names_file(value: object) -> bool:
    return isinstance(value, list) and named_file(value) is not None


def run(options: RunOptions, world: World, ready: Ready | None, injector: Injector) -> None:
    """Load the checkpoint and do what the command asks; rank 0 prints. Collective.

    `ready`: the requests, where this is the only process and they were checked before torch was loaded.
    """
    model, section = options.model, options.generation
    ready = ready or world.together("checking the request", lambda: preflight(options, world.mesh.size))
    found = {"the number of prompts": len(ready.requests), "the prompts": digest_of(ready.requests)}
    world.agree("the request", found)
    if world.env.rank == 0:
        _note_clipping(options, ready)
        _note_unused(section)

    def load(quantize: str = model.quantize) -> Llama:
        # What `score` has loaded before for comparison is given back first.
        injector.llama = None
        injector.llama = Llama.load(
            ready.found,
            world,
            model.max_seq_len,
            model.max_batch_size,
            section.seed,
            dtype=model.dtype,
            exact=model.exact,
            check_weights=model.check_weights,
            quantize=quantize,
            progress=ProgressLine("loading", "GB", 1e9, enabled=world.env.rank == 0),
            quantising_progress=_late_progress("quantising", "weights", enabled=world.env.rank == 0),
        )
        return injector.llama

    if isinstance(section, ScoreSection):
        score_text(world, options, ready, load)
    elif isinstance(section, ChatSection) and section.dialogs is None:
        converse(load(), options, ready)
    else:
        answer_requests(world, options, ready, load)


def _late_progress(doing: str, unit: str, enabled: bool) -> Callable[[int, int], None]:
    """A progress line whose time counts from its first call."""
    lines: list[ProgressLine] = []

    def tell(done: int, total: int) -> None:
        if not lines:
            lines.append(ProgressLine(doing, unit, enabled=enabled))
        lines[0](done, total)

    return tell


def _note_unused(section: GenerationSection) -> None:
    """Say which flags have no effect together."""
    if (section.logprobs or section.top_logprobs) and not (section.json or section.output):
        log.warning("note: --logprobs and --top_logprobs show only with --json or --output")
    if section.stream and section.json:
        log.warning("note: with --json each answer is printed when it is complete; --stream has no effect")
    why, unused = _without_effect(section)
    given = [
        f"--{known.name}" for known in fields(GenerationSection) if known.name in unused and _given(section, known)
    ]
    if given:
        log.warning("note: %s: no effect of %s", why, ", ".join(given))


def _without_effect(section: GenerationSection) -> tuple[str, Set[str]]:
    """The settings that do nothing in what is asked for, and why."""
    of_draws, of_beams = {"temperature", "top_p", "min_p"}, {"early_stopping", "length_penalty"}
    if isinstance(section, ScoreSection):
        return "score generates nothing", {known.name for known in fields(GenerationSection)} - _OF_SCORE
    if section.penalty_alpha:
        return "contrastive search takes the best and draws nothing", of_draws | of_beams
    if section.num_beams > 1:
        return "a beam search takes the best and draws nothing", of_draws | {"top_k"}
    return "without --num_beams there is no beam search", of_beams


def _given(section: GenerationSection, known: Field[Any]) -> bool:
    """Whether a setting says something; a temperature of 0 only says what a search does anyway."""
    value = getattr(section, known.name)
    return value != known.default and not (known.name == "temperature" and value == 0)


def _note_clipping(options: RunOptions, ready: Ready) -> None:
    asked, limit = options.generation.max_gen_len, options.model.max_seq_len
    if asked is None or not ready.requests or isinstance(options.generation, ScoreSection):
        return
    shortest_room = limit - max(request.length for request in ready.requests)
    if asked > shortest_room:
        log.warning(
            "note: max_gen_len %d is clipped: the longest prompt leaves room for %d of max_seq_len %d tokens",
            asked,
            shortest_room,
            limit,
        )
