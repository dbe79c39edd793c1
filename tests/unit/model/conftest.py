"""A tiny Llama for arithmetic, its folder in Meta's layout, and a tiny tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from torch import Tensor

from model.checkpoint.params_json import read_params
from model.cuts import all_weights
from model.params import Params
from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer

TINY = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 24, "multiple_of": 8, "norm_eps": 1e-5}

# Takes a folder, how the embedding is cut, and changes to TINY.
MakeFolder = Callable[..., Path]


def random_weights(params: Params, seed: int = 1) -> dict[str, Tensor]:
    """Weights of the uncut model, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {weight.name: weight.shape for weight in all_weights(params, 1)}
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, mp: int = 1, embedding_dim: int = 1, **changes: object) -> Path:
    """A checkpoint as torch.save writes it, cut here by torch.chunk."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({**TINY, **changes}))
    params = read_params(folder / "params.json")
    whole = random_weights(params)
    cuts = {weight.name: weight.cut for weight in all_weights(params, embedding_dim)}
    for rank in range(mp):
        shard = {}
        for name, tensor in whole.items():
            cut = cuts[name]
            shard[name] = tensor if cut is None else tensor.chunk(mp, cut)[rank].clone()
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    return lambda name, **how: write_folder(tmp_path / name, **how)


SENTENCES = """
The hare ran over the field and the tortoise walked behind it. A wind blew from the sea to the hills.
In the morning the baker made bread, in the evening the cat slept near the oven. Rain fell on the roof.
Numbers such as 12, 345 and 6789 stand in this text, and words like tree, stone, water, light and road.
"""


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A SentencePiece BPE model with Llama 2's settings: bytes as a last resort, no pad, nothing normalised."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(SENTENCES * 3)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return open_tokenizer(folder / "tokenizer.model")
