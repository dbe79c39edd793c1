"""Runs of a checkpoint, in the exact mode or not, whose logits are compared over numbers of ranks."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import load_weights
from model.exact.packing import pack
from model.tokenizers.base import Tokenizer
from model.transformer import Transformer
from parallel import Mesh
from tests.distributed.threads import run_as_threads

WORDS = (
    "the old red girl boy dog cat tree river day night friend ball went saw found took said ran and but with into was"
)


@dataclass(frozen=True, slots=True)
class Run:
    """Logits behind every token of padded prompts, [B, T, V], and of each step of greedy decoding, [B, steps, V]."""

    prefill: Tensor
    decode: Tensor

    def same(self, other: "Run") -> bool:
        return torch.equal(self.prefill, other.prefill) and torch.equal(self.decode, other.decode)


def load(checkpoint: Checkpoint, mesh: Mesh, dtype: torch.dtype, exact: bool = True) -> Transformer:
    """This rank's share."""
    params, embedding_dim = checkpoint.params, checkpoint.embedding_dim
    with torch.device("meta"):
        model = Transformer(params, mesh, 0 if embedding_dim == 0 else 1, exact)
    weights = load_weights(checkpoint, mesh.rank, mesh.size, dtype, torch.device("cpu"))
    model.load_state_dict(pack(weights, params, mesh, embedding_dim) if exact else weights, strict=True, assign=True)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def run(model: Transformer, prompts: Sequence[Sequence[int]], steps: int) -> Run:
    """Prefill a batch, then decode its likeliest tokens. Collective."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = torch.tensor([[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts])
    cache = model.new_cache(len(prompts), max(lengths) + steps)
    prefill = model.logits(model(tokens, cache))
    cache.advance(lengths)
    last, decode = prefill[torch.arange(len(prompts)), torch.tensor(lengths) - 1], []
    for _ in range(steps):
        last = model.logits(model(last.argmax(-1, keepdim=True), cache)[:, 0])
        decode.append(last)
        cache.advance([1] * len(prompts))
    return Run(prefill, torch.stack(decode, 1))


def run_at(
    mp: int,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    prompts: Sequence[Sequence[int]],
    steps: int,
    exact: bool = True,
) -> list[Run]:
    """A run on each of `mp` ranks that are threads."""
    return run_as_threads(mp, lambda mesh: run(load(checkpoint, mesh, dtype, exact), prompts, steps))


def require_same_at_all(
    sizes: Sequence[int], checkpoint: Checkpoint, dtype: torch.dtype, prompts: Sequence[Sequence[int]], steps: int
) -> Run:
    """Every rank at every MP has the same logits to the bit; those."""
    (wanted,) = run_at(1, checkpoint, dtype, prompts, steps)
    for mp in sizes:
        for rank, found in enumerate(run_at(mp, checkpoint, dtype, prompts, steps)):
            assert found.same(wanted), f"rank {rank} of {mp}, {dtype}"
    return wanted


def wordy_prompts(tokenizer: Tokenizer, count: int, tokens: int) -> list[list[int]]:
    """Prompts of `tokens` tokens each, drawn from plain words."""
    drawn = random.Random(8)
    texts = (" ".join(drawn.choices(WORDS.split(), k=tokens)) for _ in range(count))
    return [tokenizer.encode(text, bos=True, eos=False)[:tokens] for text in texts]
