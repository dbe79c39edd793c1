"""The collectives that `plan` counts for a token, against those that a real step of decoding calls."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.generation.generate import Generation
from model.generation.settings import Settings
from model.params import Params
from model.planning.traffic import traffic_of
from model.split import split_of
from model.transformer import Transformer
from parallel import World
from tests.distributed.pool import Pool

# A vocabulary and a width that do not go evenly over four ranks.
PARAMS = Params(
    dim=40,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    ffn_dim=56,
    vocab_size=50,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
KINDS = {"all_reduce": "all-reduce", "all_gather": "all-gather", "broadcast": "broadcast"}
Called = list[tuple[str, int]]


def collectives_of_a_step(world: World, embedding_dim: int, batch: int) -> Called:
    """Kind and payload of each collective of one decoding step, in order."""
    torch.manual_seed(3)
    # Over sockets, where each collective is a call of torch's; through shared memory they are the same.
    model = Transformer(PARAMS, replace(world.mesh, exchange=None), 0 if embedding_dim == 0 else 1)
    prompts = [[1 + row, 2, 3][: 2 + row % 2] for row in range(batch)]
    settings = Settings(max_gen_len=3, max_seq_len=16, temperature=0.6, top_p=0.9, seed=1)
    events = Generation(model, prompts, settings, range(batch)).events()
    for _ in range(batch):
        next(events)
    called: Called = []
    saved = {name: getattr(dist, name) for name in KINDS}
    try:
        for name, call in saved.items():
            setattr(dist, name, counted(called, name, call))
        # A whole step: the second token of every row.
        for _ in range(batch):
            next(events)
    finally:
        for name, call in saved.items():
            setattr(dist, name, call)
    for _ in events:
        pass
    return called


def counted(called: Called, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def act(first: Tensor | list[Tensor], *args: Any, **kwargs: Any) -> Any:
        held = first if isinstance(first, list) else [first]
        called.append((KINDS[name], sum(tensor.nbytes for tensor in held)))
        return call(first, *args, **kwargs)

    return act


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_a_token_takes_the_collectives_that_are_planned(ranks: Pool, embedding_dim: int, batch: int) -> None:
    split = split_of(PARAMS, ranks.size)
    planned = traffic_of(PARAMS, split, embedding_dim, batch, 4)
    expected = [(each.kind, each.payload_bytes) for each in planned.collectives for _ in range(each.count)]
    for called in ranks.run(collectives_of_a_step, embedding_dim, batch):
        assert called == expected
