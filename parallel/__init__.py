"""Ranks, groups, collectives and cut layers. Knows no Llama and starts no process.

Names are imported on first use, so that reading a configuration does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel.cross_entropy import vocab_parallel_cross_entropy
    from parallel.embedding import ParallelEmbedding, VocabParallelEmbedding
    from parallel.errors import RankFailedError, RefusedError, ShardrunError
    from parallel.linear import ColumnParallelLinear, RowParallelLinear
    from parallel.mesh import Mesh, current_mesh
    from parallel.registry import destroy_model_parallel, initialize_model_parallel
    from parallel.world import World, start_world

_HOMES = {
    "ColumnParallelLinear": "linear",
    "Mesh": "mesh",
    "ParallelEmbedding": "embedding",
    "RankFailedError": "errors",
    "RefusedError": "errors",
    "RowParallelLinear": "linear",
    "ShardrunError": "errors",
    "VocabParallelEmbedding": "embedding",
    "World": "world",
    "current_mesh": "mesh",
    "destroy_model_parallel": "registry",
    "initialize_model_parallel": "registry",
    "start_world": "world",
    "vocab_parallel_cross_entropy": "cross_entropy",
}

__all__ = [
    "ColumnParallelLinear",
    "Mesh",
    "ParallelEmbedding",
    "RankFailedError",
    "RefusedError",
    "RowParallelLinear",
    "ShardrunError",
    "VocabParallelEmbedding",
    "World",
    "current_mesh",
    "destroy_model_parallel",
    "initialize_model_parallel",
    "start_world",
    "vocab_parallel_cross_entropy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'parallel' has no attribute '{name}'")
    return getattr(importlib.import_module(f"parallel.{_HOMES[name]}"), name)
