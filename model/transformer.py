"""The Llama decoder, cut over the ranks of a mesh. Names are those of Meta's checkpoints.

Shapes: B rows, T new tokens, D model width, V/v vocabulary (full / this rank's share).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.cache import KVCache, cache_bytes
from model.exact.blocks import blocks_of
from model.exact.layers import ExactAttention, ExactFeedForward, exact_output
from model.feedforward import FeedForward
from model.norm import RMSNorm
from model.params import Params
from model.rope import Turns, rotations
from model.split import split_of
from parallel import ColumnParallelLinear, Mesh, ParallelEmbedding, VocabParallelEmbedding
from parallel.collectives import gather_from_ranks
from parallel.kernels.norm import add
from parallel.position import position

# Along which dimension tok_embeddings.weight is cut: 0, the vocabulary (Llama 3), or 1, the width (Llama 1, 2).
EmbeddingDim = Literal[0, 1]


class TransformerBlock(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to what came in.

    What the feed-forward adds is left to the next layer's norm, which reads both anyway.
    """

    def __init__(self, params: Params, layer: int, mesh: Mesh, exact: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(params.dim, params.norm_eps)
        self.attention = ExactAttention(params, layer, mesh) if exact else Attention(params, layer, mesh)
        self.ffn_norm = RMSNorm(params.dim, params.norm_eps)
        self.feed_forward = ExactFeedForward(params, mesh) if exact else FeedForward(params, mesh)

    def forward(
        self, x_BTD: Tensor, more_BTD: Tensor | None, turns: Turns, cache: KVCache | None
    ) -> tuple[Tensor, Tensor]:
        """x, and what is still to be added to it."""
        x_BTD, y_BTD = self.attention_norm(x_BTD, more_BTD)
        y_BTD = self.attention(y_BTD, turns, cache)
        x_BTD, y_BTD = self.ffn_norm(x_BTD, y_BTD)
        return x_BTD, self.feed_forward(y_BTD)


class Transformer(nn.Module):
    """The decoder. Forward is collective; a rank alone (mesh of size 1) communicates with nobody.

    `exact`: logits that are the same to the bit at every MP that divides the model evenly, slower
    (docs/adr/0011-exact-mode.md). RefusedError at another MP. Its weights are those of `pack`.
    """

    def __init__(self, params: Params, mesh: Mesh, embedding_dim: EmbeddingDim = 1, exact: bool = False) -> None:
        super().__init__()
        assert params.vocab_size > 0, "the vocabulary's size must be known before the model is built"
        self.params = params
        self.mesh = mesh
        split = split_of(params, mesh.size)
        self.vocabulary = split.vocabulary
        self.tok_embeddings = (
            VocabParallelEmbedding(params.vocab_size, params.dim, mesh=mesh, shares=split.vocabulary)
            if embedding_dim == 0
            else ParallelEmbedding(params.vocab_size, params.dim, mesh=mesh, shares=split.width)
        )
        self.layers = nn.ModuleList(TransformerBlock(params, layer, mesh, exact) for layer in range(params.n_layers))
        self.norm = RMSNorm(params.dim, params.norm_eps)
        self.output = (
            exact_output(params, mesh)
            if exact
            else ColumnParallelLinear(
                params.dim, params.vocab_size, bias=False, gather_output=False, mesh=mesh, shares=split.vocabulary
            )
        )
        self.cache_units = len(blocks_of(params, mesh.rank, mesh.size).own_units) if exact else 1
        self._turns_Sh: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def new_cache(self, batch: int, max_tokens: int) -> KVCache:
        """An empty KV cache of `batch` rows of up to `max_tokens` for this rank."""
        return KVCache(self.params, self.mesh, batch, max_tokens, self.dtype, self.device, self.cache_units)

    def cache_bytes(self, batch: int, max_tokens: int) -> int:
        """What such a cache takes."""
        return cache_bytes(self.params, self.mesh, batch, max_tokens, self.dtype)

    def turns(self, max_tokens: int) -> Tensor:
        """The rotary table for positions below `max_tokens` or more, on the weights' device; made when first needed."""
        if self._turns_Sh is None or len(self._turns_Sh) < max_tokens:
            # An inference tensor could not serve a backward pass later.
            with torch.inference_mode(False):
                self._turns_Sh = rotations(self.params, max_tokens, self.device)
        return self._turns_Sh

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None, rivals: bool = False) -> Tensor:
        """Token ids to normalised hidden states [B, T, D].

        Without a cache the rows are whole sequences from position 0 (training). With one, the tokens
        stand behind those that it holds; the caller then calls `cache.advance`. `rivals`: they compete for one place
        behind those, and do not see one another (see KVCache.plan).
        """
        if cache is None:
            new_tokens = tokens_BT.shape[1]
            positions_1T = torch.arange(new_tokens, device=tokens_BT.device).unsqueeze(0)
            turns = Turns(self.turns(new_tokens), positions_1T)
        else:
            cache.plan(tokens_BT.shape[1], rivals)
            turns = Turns(self.turns(cache.max_tokens), cache.positions_BT)
        return self.through_layers(self.tok_embeddings(tokens_BT), turns, cache)

    def through_layers(self, x_BTD: Tensor, turns: Turns, cache: KVCache | None) -> Tensor:
        """Embeddings [B, T, D] to normalised hidden states. Without autograd `x_BTD` is overwritten. Collective."""
        more_BTD, stepping = None, cache is not None and cache.stepping
        for block in self.layers:
            position.tick()  # on one rank there is no collective that would show that it is at work
            x_BTD, more_BTD = block(x_BTD, more_BTD, turns, cache)
            if not stepping:
                # Of many tokens it would take too much room while the next layer works.
                x_BTD, more_BTD = add(x_BTD, more_BTD), None
        return self.norm(x_BTD, more_BTD)[1]  # type: ignore[no-any-return]

    def local_logits(self, x_BTD: Tensor) -> Tensor:
        """Hidden states [..., D] to this rank's share of the logits [..., v]."""
        return self.output(x_BTD)  # type: ignore[no-any-return]

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Hidden states [..., D] to all logits [..., V] in float32, the same on every rank. Collective."""
        return gather_from_ranks(self.local_logits(x_BTD), self.mesh, self.vocabulary).to(torch.float32)
