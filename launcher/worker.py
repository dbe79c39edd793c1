"""One rank, or one process alone: from its options to its results."""

import hashlib
import json
import logging
from dataclasses import fields

from launcher.answering import answer_all
from launcher.asked import named_file
from launcher.chatting import converse
from launcher.console import ProgressLine
from launcher.options import ChatSection, GenerationSection, RunOptions, ScoreSection
from launcher.preflight import Ready, preflight
from launcher.scoring import score_text
from launcher.version import version
from model.llama import Llama
from parallel import World, start_world

log = logging.getLogger("shardrun")

# Files may stand elsewhere on another host; what is in them is compared when they are read.
_ELSEWHERE = frozenset({"ckpt_dir", "tokenizer_path", "output"})


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
    return named_file(value if isinstance(value, list) else [value]) is not None


def run(options: RunOptions, world: World, ready: Ready | None = None) -> None:
    """Load the checkpoint and do what the command asks; rank 0 prints. Collective.

    `ready`: the requests, where this is the only process and they were checked before torch was loaded.
    """
    model, section = options.model, options.generation
    ready = ready or world.together("checking the request", lambda: preflight(options, world.mesh.size))
    digest = hashlib.sha256(json.dumps([request.tokens for request in ready.requests]).encode()).hexdigest()
    world.agree("the request", {"the number of prompts": len(ready.requests), "the prompts": digest})
    llama = Llama.load(
        ready.found,
        world,
        model.max_seq_len,
        model.max_batch_size,
        section.seed,
        dtype=model.dtype,
        exact=model.exact,
        check_weights=model.check_weights,
        progress=ProgressLine("loading", "GB", 1e9, enabled=world.env.rank == 0),
    )
    if world.env.rank == 0:
        _note_clipping(options, ready)
        _note_unused(section)
    if isinstance(section, ScoreSection):
        score_text(llama, options, ready)
    elif isinstance(section, ChatSection) and section.dialogs is None:
        converse(llama, options, ready)
    else:
        answer_all(llama, options, ready)


def _note_unused(section: GenerationSection) -> None:
    """Say which flags have no effect together."""
    if (section.logprobs or section.top_logprobs) and not (section.json or section.output):
        log.warning("note: --logprobs and --top_logprobs show only with --json or --output")
    if section.stream and section.json:
        log.warning("note: with --json each answer is printed when it is complete; --stream has no effect")
    search = "contrastive search" if section.penalty_alpha else "a beam search" if section.num_beams > 1 else None
    drawn = (section.temperature, section.top_p, section.min_p)
    if search is not None and drawn not in ((0.6, 0.9, 0.0), (0.0, 0.9, 0.0)):
        log.warning("note: %s takes the best and draws nothing; --temperature, --top_p and --min_p do nothing", search)


def _note_clipping(options: RunOptions, ready: Ready) -> None:
    asked, limit = options.generation.max_gen_len, options.model.max_seq_len
    if asked is None or not ready.requests or isinstance(options.generation, ScoreSection):
        return
    shortest_room = limit - max(len(request.tokens) for request in ready.requests)
    if asked > shortest_room:
        log.warning(
            "note: max_gen_len %d is clipped: the longest prompt leaves room for %d of max_seq_len %d tokens",
            asked,
            shortest_room,
            limit,
        )
