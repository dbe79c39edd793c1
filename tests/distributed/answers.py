"""What a checkpoint answers on a rank of any number: logits and greedy tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import load_weights
from model.generation.generate import Generation
from model.generation.settings import Settings
from model.transformer import Transformer
from parallel import Mesh

# The logits behind each token of the first prompt, and what all prompts go on with.
Answer = tuple[Tensor, list[list[int]]]


def answer(checkpoint: Checkpoint, mesh: Mesh, prompts: Sequence[Sequence[int]], new_tokens: int) -> Answer:
    """Load this rank's share in float32 and run it. Collective."""
    with torch.device("meta"):
        model = Transformer(checkpoint.params, mesh, 0 if checkpoint.embedding_dim == 0 else 1)
    weights = load_weights(checkpoint, mesh.rank, mesh.size, torch.float32, torch.device("cpu"))
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(False).eval()
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor(prompts[:1])))[0]
    settings = Settings(max_gen_len=new_tokens, max_seq_len=256, temperature=0, top_p=1, seed=1)
    rows: list[list[int]] = [[] for _ in prompts]
    for event in Generation(model, prompts, settings, range(len(prompts))).events():
        assert event.token is not None
        rows[event.row].append(event.token)
    return logits.clone(), rows


def require_answer(found: Sequence[Answer], wanted: Answer) -> None:
    """Every rank has the same, and it is what was wanted."""
    logits, rows = wanted
    for own_logits, own_rows in found:
        assert torch.equal(own_logits, found[0][0])
        # Sums over ranks are taken in another order: some units in the last place of float32, over all layers.
        assert float((own_logits - logits).abs().max()) <= 1e-5 * float(logits.abs().max())
        assert own_rows == rows
