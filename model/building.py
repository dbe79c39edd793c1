"""From a checkpoint that was looked at to this rank's share of the model."""

import logging
import time
from collections.abc import Sequence

import torch

from model import packing
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress, load_weights
from model.exact.blocks import check_exact, exact_sizes
from model.exact.packing import pack
from model.looking import Found
from model.placing import check_room, choose_dtype, private_bytes, share_bytes
from model.quantisation import check_quantisation, format_of
from model.quantising import Progress as QuantisingProgress
from model.quantising import quantise, weights_bytes
from model.transformer import Transformer
from parallel import World
from parallel.environment import threads_from_environment
from parallel.errors import one_of
from parallel.kernels.formats import Quantisation

log = logging.getLogger("shardrun")


def build_model(
    found: Found,
    world: World,
    dtype: str,
    progress: Progress | None = None,
    exact: bool = False,
    quantize: str = "none",
    quantising_progress: QuantisingProgress | None = None,
) -> Transformer:
    """Choose a dtype, see that the weights fit and are the same everywhere, load them. Collective.

    `exact`: see Transformer; this process then computes on as many threads as at every other MP. `quantize`: none,
    int8 or int4, what the weights become when they are loaded. Raises RefusedError, the same on every rank.
    """
    checkpoint, tokenizer = found.checkpoint, found.tokenizer
    chosen, to = world.together("choosing a dtype", lambda: _choose(found, world, dtype, exact, quantize))
    files = {**checkpoint.fingerprint(), "the tokenizer": tokenizer and tokenizer.digest()}
    world.agree("the checkpoint's files", files)
    started = time.monotonic()
    model = world.together("loading the weights", lambda: _load(checkpoint, world, chosen, progress, exact, to))
    took_s, nbytes = time.monotonic() - started, weights_bytes(model)
    log.info("loaded %.3g GB in %.2f s (%.2g GB/s)", nbytes / 1e9, took_s, nbytes / 1e9 / max(took_s, 1e-9))
    if to != "none":
        quantise(model, world, to, quantising_progress)
    if model.device.type == "cuda":
        # Last: quantising has put other weights in the place of the plain ones.
        world.together("packing the weights", lambda: packing.pack(model))
    if exact:
        _fix_threads(world, exact_sizes(checkpoint.params))
    return model


def check_plain_weights_fit(found: Found, world: World, dtype: str) -> None:
    """RefusedError, the same on every rank, where there is no room for the weights as they are. Collective."""

    def check() -> None:
        chosen, _ = choose_dtype(dtype, found.checkpoint.dtype, world.device)
        what = "the plain weights, which are to be compared with (--compare_plain false: score without them)"
        _check_fit(found.checkpoint, world, chosen, what=what)

    world.together("asking for room for the plain weights", check)


def _check_fit(
    checkpoint: Checkpoint,
    world: World,
    dtype: torch.dtype,
    exact: bool = False,
    quantize: Quantisation = "none",
    what: str = "the weights",
) -> None:
    ranks = world.mesh.size
    # Blocks are copies; those that can stay in the files are not told apart here.
    needed_bytes = (
        share_bytes(checkpoint.params, ranks, dtype, checkpoint.embedding_dim)
        if exact
        else private_bytes(checkpoint, ranks, dtype, world.device, quantize)
    )
    check_room(needed_bytes, world.device, world.env.local_world_size, what)


def _choose(found: Found, world: World, dtype: str, exact: bool, quantize: str) -> tuple[torch.dtype, Quantisation]:
    """The dtype to compute in, and what the weights become; what a user should know is said by rank 0."""
    checkpoint, ranks = found.checkpoint, world.mesh.size
    to = check_quantisation(quantize, exact)
    if exact:
        check_exact(checkpoint.params, ranks)
    chosen, why = choose_dtype(dtype, checkpoint.dtype, world.device)
    _check_fit(checkpoint, world, chosen, exact, to)
    for note in found.notes if world.env.rank == 0 else ():
        log.warning("note: %s", note)
    name, rope = str(chosen).removeprefix("torch."), checkpoint.params.rope_reason
    weights = "" if to == "none" else f", weights in {to}"
    log.info("%s: MP %d, dtype %s (%s)%s, rope %s", checkpoint.folder, ranks, name, why, weights, rope)
    return chosen, to


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
    checkpoint: Checkpoint,
    world: World,
    dtype: torch.dtype,
    progress: Progress | None,
    exact: bool,
    quantize: Quantisation,
) -> Transformer:
    """The model, built on meta and then given its weights. Those that are to be quantised are still plain, in the
    files' dtype and on the host."""
    mesh, params, embedding_dim = world.mesh, checkpoint.params, checkpoint.embedding_dim
    with torch.device("meta"):
        model = Transformer(params, mesh, 0 if embedding_dim == 0 else 1, exact)
    as_stored = {weight.name for weight in checkpoint.weights if format_of(weight.name, quantize) != "none"}
    weights = load_weights(checkpoint, mesh.rank, mesh.size, dtype, world.device, world.neighbours, progress, as_stored)
    if exact:
        weights = pack(weights, params, mesh, embedding_dim)
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(False)
    return model.eval()
