"""Folders written in the other layout."""

from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from model.hugging_face.writing import write_hugging_face_folder
from tests.hugging_face import same_bits


def to_hugging_face(source: Path, destination: Path, **how: Any) -> Path:
    write_hugging_face_folder(open_checkpoint(source), destination, **how)
    return destination


def to_meta(source: Path, destination: Path, mp: int = 1, embedding_dim: int = 1) -> Path:
    checkpoint = open_checkpoint(source)
    if checkpoint.mp == 1:
        checkpoint = checkpoint.with_embedding_dim(embedding_dim)
    write_meta_folder(checkpoint, destination, mp)
    return destination


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert same_bits(found[name], tensor), name
