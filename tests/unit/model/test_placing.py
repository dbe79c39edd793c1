"""Which dtype the weights take, and whether they fit."""

import re
from pathlib import Path

import pytest
import torch

from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.params_json import read_params
from model.host import available_host_bytes, cpu_has_bfloat16
from model.placing import check_room, choose_dtype, private_bytes, share_bytes
from parallel import RefusedError
from tests.minis import MINIS
from tests.unit.model.test_params import MODELS, file_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("asked", DTYPES)
def test_a_dtype_that_is_asked_for_is_taken(asked: str, stored: str, device: torch.device) -> None:
    assert choose_dtype(asked, stored, device) == (DTYPES[asked], "asked for")


@pytest.mark.parametrize("stored", DTYPES)
def test_auto_on_a_gpu_is_the_files_dtype(stored: str) -> None:
    assert choose_dtype("auto", stored, CUDA) == (DTYPES[stored], "the files'")


def test_auto_on_a_cpu_is_float32_for_float16_and_where_bfloat16_is_slow() -> None:
    assert choose_dtype("auto", "float32", CPU) == (torch.float32, "the files'")
    assert choose_dtype("auto", "float16", CPU) == (torch.float32, "the files' float16 is slow on a CPU")
    native = (torch.bfloat16, "the files'")
    slow = (torch.float32, "this processor has no bfloat16 arithmetic")
    assert choose_dtype("auto", "bfloat16", CPU) == (native if cpu_has_bfloat16() else slow)


@pytest.mark.parametrize("asked", ["float64", "fp16", "", "AUTO"])
def test_another_dtype_is_refused_with_those_that_there_are(asked: str) -> None:
    with pytest.raises(RefusedError, match=f"dtype is '{asked}'; wanted auto, float32, bfloat16, float16"):
        choose_dtype(asked, "float32", CPU)


@pytest.mark.parametrize(
    ("name", "mp", "gigabytes"),
    # MODELS.md, "files x GB", in bfloat16.
    [
        ("Llama 1 7B", 1, 13.48),
        ("Llama 1 13B", 2, 13.02),
        ("Llama 1 30B", 4, 16.27),
        ("Llama 1 65B", 8, 16.32),
        ("Llama 2 70B", 8, 17.25),
        ("Code Llama 34B", 4, 16.87),
        ("Llama 3 8B", 1, 16.06),
        ("Llama 3 70B", 8, 17.64),
        ("Llama 3.1 405B MP8", 8, 101.47),
        ("Llama 3.2 3B", 1, 7.21),
    ],
)
def test_a_ranks_share_is_the_size_of_its_published_file(tmp_path: Path, name: str, mp: int, gigabytes: float) -> None:
    raw = next(row[1] for row in MODELS if row[0] == name)
    share = share_bytes(read_params(file_of(tmp_path, raw)), mp, torch.bfloat16)
    # The table gives two decimals.
    assert share / 1e9 == pytest.approx(gigabytes, abs=0.0051)


def test_a_share_of_one_is_every_parameter(tmp_path: Path) -> None:
    params = read_params(file_of(tmp_path, MODELS[0][1]))
    assert share_bytes(params, 1, torch.float32) == 4 * params.n_parameters


@pytest.mark.parametrize("mp", [1, 3, 6])
def test_the_first_ranks_share_is_the_largest_and_is_counted_to_the_byte(tmp_path: Path, mp: int) -> None:
    checkpoint = open_checkpoint(MINIS["12 heads"].write(tmp_path / "ckpt", 4))
    sizes = []
    for rank in range(mp):
        weights = load_weights(checkpoint, rank, mp, torch.bfloat16, CPU)
        sizes.append(sum(weight.nbytes for weight in weights.values()))
    assert share_bytes(checkpoint.params, mp, torch.bfloat16, checkpoint.embedding_dim) == sizes[0] == max(sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "mp", "ranks"),
    [
        *[("12 heads", mp, ranks) for mp in (1, 4) for ranks in (1, 2, 3, 4, 12)],
        *[("16 heads, 8 KV heads", 16, ranks) for ranks in (1, 2, 3, 4, 16)],
    ],
)
def test_the_bytes_asked_for_are_those_that_the_rank_which_copies_most_copies(
    tmp_path: Path, name: str, mp: int, ranks: int, dtype: str
) -> None:
    checkpoint = open_checkpoint(MINIS[name].write(tmp_path / "ckpt", mp))
    copied = []
    for rank in range(ranks):
        weights = load_weights(checkpoint, rank, ranks, DTYPES[dtype], CPU)
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ends = [line[0].split("-") for line in lines if line[-1].startswith(str(tmp_path))]
        files = [range(int(start, 16), int(stop, 16)) for start, stop in ends]
        elsewhere = [one for one in weights.values() if not any(one.data_ptr() in place for place in files)]
        copied.append(sum(weight.nbytes for weight in elsewhere))
    assert private_bytes(checkpoint, ranks, DTYPES[dtype], CPU) == max(copied)
    weights = load_weights(checkpoint, 0, ranks, DTYPES[dtype], CPU)
    # On a GPU nothing can stay in a file.
    assert private_bytes(checkpoint, ranks, DTYPES[dtype], CUDA) == sum(weight.nbytes for weight in weights.values())


def test_more_than_there_is_is_refused_with_both_numbers() -> None:
    free = available_host_bytes()
    assert 2**20 < free <= 2**62
    check_room(1, CPU, 2, "the weights")
    text = f"the weights: {2**63} bytes ({2**63 / 1e9:.2f} GB) are needed on this host, "
    with pytest.raises(RefusedError, match=re.escape(text)):
        check_room(2**62, CPU, 2, "the weights")


def test_room_is_asked_for_all_ranks_of_the_host_together() -> None:
    half = available_host_bytes() * 3 // 4
    check_room(half, CPU, 1, "the weights")
    with pytest.raises(RefusedError, match="are free; use more ranks on more devices, a smaller dtype"):
        check_room(half, CPU, 2, "the weights")
