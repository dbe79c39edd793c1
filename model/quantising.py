"""From plain weights to small whole numbers, after loading: one weight at a time a thread, at any MP.

The weights that are to be quantised have been brought to the host in the files' own dtype, most of them mapped
(checkpoint/loading.py), so that little of them stands beside the result in memory.

Scales must not depend on the MP. Those of int8 belong to a row, and a row of wo and w2 is spread over the ranks: its
largest number is looked for on all of them, for all layers in one all-reduce. So a rank's whole numbers are the slices
of those at MP 1. The groups of int4 count from a rank's first column: they are those of MP 1 where the cuts fall
between groups.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.checkpoint.staging import Stager
from model.quantisation import format_of
from model.transformer import Transformer
from parallel import ColumnParallelLinear, Mesh, RowParallelLinear, World
from parallel.collectives import all_reduce
from parallel.kernels.formats import GROUP, Quantisation
from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight, largest_of_rows
from parallel.position import position

log = logging.getLogger("shardrun")

# Called with weights quantised so far and weights in all.
Progress = Callable[[int, int], None]
Layer = ColumnParallelLinear | RowParallelLinear
T = TypeVar("T")
R = TypeVar("R")


def quantise(model: Transformer, world: World, quantize: Quantisation, progress: Progress | None = None) -> None:
    """Put quantised weights, on the model's device, in the place of the plain ones, wherever these are. Collective.

    RefusedError or a fault of any rank is told on all.
    """
    started, before = time.monotonic(), weights_bytes(model)
    bring = _Bringer(model.device)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer)}
    _note_cut_groups(layers, world, quantize)
    spread = _spread_rows(layers, quantize) if not world.mesh.alone else {}
    own = world.together("measuring the weights", lambda: _largest(list(spread.values()), bring))
    largest = dict(zip(spread, _over_ranks(own, world.mesh), strict=True))
    world.together("quantising", lambda: _quantise(layers, largest, bring, quantize, progress))
    after, took_s = weights_bytes(model), time.monotonic() - started
    log.info("%s: %.3g GB of weights became %.3g GB in %.2f s", quantize, before / 1e9, after / 1e9, took_s)


def weights_bytes(model: Transformer) -> int:
    """Of this rank's weights, with the scales of those that are quantised."""
    return sum(parameter.nbytes for parameter in model.parameters())


class _Bringer:
    """Brings a layer's plain weight to where it is quantised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stager = Stager(device) if device.type == "cuda" else None

    def __call__(self, layer: Layer) -> Tensor:
        assert isinstance(layer.weight, Tensor), "the weight is quantised already"
        weight = layer.weight.detach()
        if self.stager is None or weight.device.type == "cuda":
            return weight
        there = torch.empty(weight.shape, dtype=weight.dtype, device=self.device)
        # What reads it there is queued behind the copy.
        self.stager.copy(weight, there)
        return there


def _spread_rows(layers: dict[str, Layer], quantize: Quantisation) -> dict[str, Layer]:
    """The layers whose rows have one scale each, over all ranks."""
    return {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer, RowParallelLinear) and format_of(f"{name}.weight", quantize) == "int8"
    }


def _largest(layers: Sequence[Layer], bring: _Bringer) -> list[Tensor]:
    """Of this rank's part of each row, by size."""
    return list(_each(lambda layer: largest_of_rows(bring(layer)), layers, bring.device))


def _over_ranks(own: Sequence[Tensor], mesh: Mesh) -> tuple[Tensor, ...]:
    """The largest over all ranks of each number [out]. Collective."""
    if not own:
        return ()
    return torch.split(all_reduce(torch.cat(list(own)), mesh, dist.ReduceOp.MAX), [len(each) for each in own])


def _quantise(
    layers: dict[str, Layer],
    largest: dict[str, Tensor],
    bring: _Bringer,
    quantize: Quantisation,
    progress: Progress | None,
) -> None:
    def of(name: str) -> QuantisedWeight:
        weight = bring(layers[name])
        if format_of(f"{name}.weight", quantize) == "int4":
            return Int4Weight.of(weight)
        return Int8Weight.of(weight, largest.get(name))

    position.phase("quantising", len(layers), "weight")
    for number, (layer, quantised) in enumerate(
        zip(layers.values(), _each(of, list(layers), bring.device), strict=True), 1
    ):
        del layer.weight
        layer.weight = quantised
        position.step(number)
        if progress is not None:
            progress(number, len(layers))


def _each(act: Callable[[T], R], items: Sequence[T], device: torch.device) -> Iterator[R]:
    """What `act` says of each item, in order. On a CPU an item a thread: blocks of rows are so small that threads
    within one would mostly wait for each other."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(act, items)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(act, items)
        finally:
            torch.set_num_threads(threads)


def _note_cut_groups(layers: dict[str, Layer], world: World, quantize: Quantisation) -> None:
    """Say where the groups of int4 are others than at MP 1."""
    cut = {
        name.rpartition(".")[2]: None
        for name, layer in layers.items()
        if isinstance(layer, RowParallelLinear)
        and format_of(f"{name}.weight", quantize) == "int4"
        and any(own.start % GROUP for own in layer.shares or ())
    }
    if cut and world.env.rank == 0:
        log.warning(
            "note: int4: ranks hold parts of %s that do not begin at a multiple of %d columns, so their groups, and "
            "with them the tokens, may be others than at another MP",
            " and ".join(cut),
            GROUP,
        )
