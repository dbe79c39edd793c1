"""From a checkpoint that was looked at to this rank's share of the model."""

import logging
import time
from collections.abc import Sequence

import torch

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress, load_weights
from model.exact.blocks import check_exact, exact_sizes
from model.exact.packing import pack
from model.looking import Found
from model.placing import check_room, choose_dtype, private_bytes, share_bytes
from model.transformer import Transformer
from parallel import World
from parallel.environment import threads_from_environment
from parallel.errors import one_of

log = logging.getLogger("shardrun")


def build_model(
    found: Found, world: World, dtype: str, progress: Progress | None = None, exact: bool = False
) -> Transformer:
    """Choose a dtype, see that the weights fit and are the same everywhere, load them. Collective.

    `exact`: see Transformer; this process then computes on as many threads as at every other MP. Raises
    RefusedError, the same on every rank.
    """
    checkpoint, tokenizer = found.checkpoint, found.tokenizer
    chosen = world.together("choosing a dtype", lambda: _choose(found, world, dtype, exact))
    files = {**checkpoint.fingerprint(), "the tokenizer": tokenizer and tokenizer.digest()}
    world.agree("the checkpoint's files", files)
    started = time.monotonic()
    model = world.together("loading the weights", lambda: _load(checkpoint, world, chosen, progress, exact))
    took_s = time.monotonic() - started
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    log.info("loaded %.3g GB in %.2f s (%.2g GB/s)", nbytes / 1e9, took_s, nbytes / 1e9 / max(took_s, 1e-9))
    if exact:
        _fix_threads(world, exact_sizes(checkpoint.params))
    return model


def _choose(found: Found, world: World, dtype: str, exact: bool) -> torch.dtype:
    """The dtype to compute in; what a user should know is said by rank 0."""
    checkpoint, ranks = found.checkpoint, world.mesh.size
    if exact:
        check_exact(checkpoint.params, ranks)
    chosen, why = choose_dtype(dtype, checkpoint.dtype, world.device)
    # Blocks are copies; those that can stay in the files are not told apart here.
    needed_bytes = (
        share_bytes(checkpoint.params, ranks, chosen, checkpoint.embedding_dim)
        if exact
        else private_bytes(checkpoint, ranks, chosen, world.device)
    )
    check_room(needed_bytes, world.device, world.env.local_world_size, "the weights")
    for note in found.notes if world.env.rank == 0 else ():
        log.warning("note: %s", note)
    name, rope = str(chosen).removeprefix("torch."), checkpoint.params.rope_reason
    log.info("%s: MP %d, dtype %s (%s), rope %s", checkpoint.folder, ranks, name, why, rope)
    return chosen


def _fix_threads(world: World, sizes: Sequence[int]) -> None:
    """Compute on one thread, or on as many as OMP_NUM_THREADS says: sums may be cut up between threads.

    A rank's share of the host's cores, as elsewhere, would differ from MP to MP.
    """
    threads = threads_from_environment() or 1
    world.agree("the exact mode", {"the number of CPU threads (OMP_NUM_THREADS)": threads})
    torch.set_num_threads(threads)
    share = f"{threads} CPU thread{'s' if threads > 1 else ''} a rank"
    log.info("exact: the same logits at an MP of %s, on %s", one_of(list(sizes)), share)


def _load(
    checkpoint: Checkpoint, world: World, dtype: torch.dtype, progress: Progress | None, exact: bool
) -> Transformer:
    """The model, built on meta and then given its weights."""
    mesh, params, embedding_dim = world.mesh, checkpoint.params, checkpoint.embedding_dim
    with torch.device("meta"):
        model = Transformer(params, mesh, 0 if embedding_dim == 0 else 1, exact)
    weights = load_weights(checkpoint, mesh.rank, mesh.size, dtype, world.device, world.neighbours, progress)
    if exact:
        weights = pack(weights, params, mesh, embedding_dim)
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(False)
    return model.eval()
