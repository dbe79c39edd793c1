"""From a checkpoint that was looked at to this rank's share of the model."""

import logging
import time

import torch

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress, load_weights
from model.looking import Found
from model.placing import check_room, choose_dtype, private_bytes
from model.transformer import Transformer
from parallel import World

log = logging.getLogger("shardrun")


def build_model(found: Found, world: World, dtype: str, progress: Progress | None = None) -> Transformer:
    """Choose a dtype, see that the weights fit and are the same everywhere, load them. Collective.

    Raises RefusedError, the same on every rank.
    """
    checkpoint, tokenizer = found.checkpoint, found.tokenizer
    chosen = world.together("choosing a dtype", lambda: _choose(found, world, dtype))
    files = {**checkpoint.fingerprint(), "the tokenizer": tokenizer and tokenizer.digest()}
    world.agree("the checkpoint's files", files)
    started = time.monotonic()
    model = world.together("loading the weights", lambda: _load(checkpoint, world, chosen, progress))
    took_s = time.monotonic() - started
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    log.info("loaded %.3g GB in %.2f s (%.2g GB/s)", nbytes / 1e9, took_s, nbytes / 1e9 / max(took_s, 1e-9))
    return model


def _choose(found: Found, world: World, dtype: str) -> torch.dtype:
    """The dtype to compute in; what a user should know is said by rank 0."""
    checkpoint, ranks = found.checkpoint, world.mesh.size
    chosen, why = choose_dtype(dtype, checkpoint.dtype, world.device)
    needed_bytes = private_bytes(checkpoint, ranks, chosen, world.device)
    check_room(needed_bytes, world.device, world.env.local_world_size, "the weights")
    for note in found.notes if world.env.rank == 0 else ():
        log.warning("note: %s", note)
    name, rope = str(chosen).removeprefix("torch."), checkpoint.params.rope_reason
    log.info("%s: MP %d, dtype %s (%s), rope %s", checkpoint.folder, ranks, name, why, rope)
    return chosen


def _load(checkpoint: Checkpoint, world: World, dtype: torch.dtype, progress: Progress | None) -> Transformer:
    """The model, built on meta and then given its weights."""
    mesh = world.mesh
    with torch.device("meta"):
        model = Transformer(checkpoint.params, mesh, 0 if checkpoint.embedding_dim == 0 else 1)
    weights = load_weights(checkpoint, mesh.rank, mesh.size, dtype, world.device, world.neighbours, progress)
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(False)
    return model.eval()
