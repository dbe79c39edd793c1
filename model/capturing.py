"""A decoding step on a GPU as one captured graph: the kernels of a step are launched by one call, without Python.

What changes from step to step stands in memory that stays where it is: the tokens, and the places that they take in
the cache. Collectives of NCCL are captured with the rest. Those of gloo cannot be: there, as without Triton and in
the exact mode, each step is an ordinary pass.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from model.attention import Attention
from model.cache import KVCache
from model.rope import Turns
from model.stepping import Step
from model.transformer import Transformer
from parallel.kernels.attention import can_step

log = logging.getLogger("shardrun")


class Graph(Protocol):
    """Some work that was captured, to be done again on what now stands in the same memory."""

    def replay(self) -> Tensor:
        """Do it; what the function that was captured gave."""


class CudaGraph:
    """What `run` launches on a GPU. RuntimeError where it does something that cannot be captured."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog asks for events in a thread of its own: that is none of this capture's business.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = run()

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._found


def make_step(model: Transformer, cache: KVCache) -> "Step | CapturedStep":
    """The fastest way here to run `model` over a token a row of `cache`, again and again. See Step."""
    return CapturedStep(model, cache) if capturable(model, len(cache.lengths)) else Step(model, cache)


def capturable(model: Transformer, rows: int) -> bool:
    """Whether a step over so many rows on this device does nothing but launch kernels, the same at every length."""
    mesh = model.mesh
    return (
        model.device.type == "cuda"
        and (mesh.alone or dist.get_backend(mesh.group) == "nccl")
        and all(isinstance(block.attention, Attention) for block in model.layers)
        and can_step(model.norm.weight.detach(), rows)
    )


class CapturedStep:
    """As Step: called with the tokens of a step [B, 1]; gives hidden states [B, 1, D], which the next step overwrites.
    Collective.

    The first step in a cache's memory is an ordinary pass, which also compiles what is not compiled yet; the second
    is captured. No rank need know whether another could capture: replayed or not, the collectives are the same.
    """

    def __init__(
        self, model: Transformer, cache: KVCache, capture: Callable[[Callable[[], Tensor]], Graph] = CudaGraph
    ) -> None:
        self.model = model
        self.cache = cache
        self._capture: Callable[[Callable[[], Tensor]], Graph] | None = capture
        self._memory: object = None
        self._graph: Graph | None = None

    def __call__(self, tokens_B1: Tensor, watched: bool = False) -> Tensor:
        """`watched`: somebody looks at what single layers put out, so these must be called one by one."""
        if watched or self._capture is None:
            return self.model(tokens_B1, self.cache)  # type: ignore[no-any-return]
        if self._memory is not self.cache.memory:
            self._hold(tokens_B1)
            return self._run()
        self._tokens_B1.copy_(tokens_B1)
        if self._graph is None:
            self.cache.plan(1)
            try:
                self._graph = self._capture(self._run)
            except RuntimeError as error:
                log.warning("note: decoding is slower, since a step could not be captured: %s", error)
                self._capture = None
                return self._run()
        # All that `plan` would change of what was captured; and the host does not wait for it.
        self.cache.step_places_B.copy_(torch.tensor(self.cache.lengths), non_blocking=True)
        return self._graph.replay()

    def _hold(self, tokens_B1: Tensor) -> None:
        """Keep in one place what the steps in this memory of the cache read."""
        self._memory, self._graph = self.cache.memory, None
        self._tokens_B1 = tokens_B1.clone()
        self.cache.plan(1)
        self._turns = Turns(self.model.turns(self.cache.max_tokens), self.cache.step_places_B.unsqueeze(1))

    def _run(self) -> Tensor:
        x_B1D = self.model.tok_embeddings(self._tokens_B1)
        return self.model.through_layers(x_B1D, self._turns, self.cache)
