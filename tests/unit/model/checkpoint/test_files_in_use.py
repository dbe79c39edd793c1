"""Files whose weights are in use: what may happen to them, and what is told from a few of their bytes."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import check_in_place
from model.hugging_face.writing import write_hugging_face_folder
from parallel.errors import RankFailedError
from tests.minis import MINIS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return MINIS["12 heads"].write(tmp_path / "ckpt", 2)


def test_a_file_that_was_replaced_or_removed_is_no_matter(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    shard = folder / "consolidated.01.pth"
    shutil.copyfile(shard, folder / "new")
    os.replace(folder / "new", shard)
    check_in_place(checkpoint)
    shard.unlink()
    check_in_place(checkpoint)


def test_a_file_that_was_written_over_is_refused(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    with (folder / "consolidated.01.pth").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(RankFailedError, match=r"consolidated\.01\.pth: was written over while the model runs from it"):
        check_in_place(checkpoint)


def test_two_hugging_face_models_of_one_shape_have_different_fingerprints(folder: Path, tmp_path: Path) -> None:
    write_hugging_face_folder(open_checkpoint(folder), tmp_path / "hf")
    before = open_checkpoint(tmp_path / "hf").fingerprint()
    assert open_checkpoint(tmp_path / "hf").fingerprint() == before
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] += 1
    save_file(weights, path)
    assert open_checkpoint(tmp_path / "hf").fingerprint() != before
