"""Our writer's files against torch.load, zipfile and torch.save."""

import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.shard_writer import PlannedTensor, planned, write_shard
from model.checkpoint.torch_file import read_header


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(6, 10, generator=generator)
    return {
        "float32": base,
        "bfloat16": base.to(torch.bfloat16),
        "float16": base[:, :3].to(torch.float16),
        "one number": torch.tensor(7.5),
        "a vector": torch.arange(5, dtype=torch.float32),
        "not contiguous": base.T,
        "a slice": base.narrow(1, 2, 5),
        "no numbers": torch.empty(0, 4),
        "spoilt": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "consolidated.00.pth"
    write_shard(path, planned(tensors()))
    return path


def same_bits(one: Tensor, other: Tensor) -> bool:
    whole = {4: torch.int32, 2: torch.int16}[one.element_size()]
    same_form = one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()
    return same_form and torch.equal(one.view(whole), other.view(whole))


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_the_file_with_weights_only_mapped_and_not(shard: Path, mmap: bool) -> None:
    loaded = torch.load(shard, weights_only=True, mmap=mmap)
    assert list(loaded) == list(tensors())
    for name, tensor in tensors().items():
        assert same_bits(loaded[name], tensor.contiguous()), name


def test_the_content_is_what_torch_save_writes(shard: Path, tmp_path: Path) -> None:
    ours = torch.load(shard, weights_only=True)
    torch.save({name: tensor.contiguous() for name, tensor in tensors().items()}, tmp_path / "theirs.pth")
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    with zipfile.ZipFile(shard) as mine, zipfile.ZipFile(tmp_path / "theirs.pth") as other:
        for info in other.infolist():
            record = info.filename.partition("/")[2]
            if record.startswith("data/") or record in ("byteorder", "version"):
                assert mine.read(f"archive/{record}") == other.read(info), record
        named = [{op.name for op, _, _ in pickletools.genops(z.read(z.namelist()[0]))} for z in (mine, other)]
    assert named[0] <= named[1], "our pickle uses an opcode that torch.save's does not"


def test_every_checksum_is_right_and_nothing_is_compressed(shard: Path) -> None:
    with zipfile.ZipFile(shard) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.filename.partition("/")[0] for info in archive.infolist()} == {"archive"}


def test_every_record_begins_at_a_multiple_of_64(shard: Path) -> None:
    content = shard.read_bytes()
    with zipfile.ZipFile(shard) as archive:
        for info in archive.infolist():
            name_bytes, extra_bytes = struct.unpack_from("<HH", content, info.header_offset + 26)
            start = info.header_offset + 30 + name_bytes + extra_bytes
            assert start % 64 == 0, info.filename
            assert content[start : start + info.file_size] == archive.read(info)


def test_two_writes_are_the_same_to_the_bit(shard: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "again.pth", planned(tensors()))
    assert (tmp_path / "again.pth").read_bytes() == shard.read_bytes()


def test_our_header_reader_finds_each_tensor_where_it_stands(shard: Path) -> None:
    header, content = read_header(shard), shard.read_bytes()
    assert list(header.tensors) == list(tensors())
    for name, tensor in tensors().items():
        entry = header.tensors[name]
        assert entry.shape == tuple(tensor.shape)
        bits = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
        assert content[entry.start : entry.start + entry.nbytes] == bits


def test_tensors_are_made_one_at_a_time_and_their_bytes_are_told(tmp_path: Path) -> None:
    log: list[str] = []

    def maker(name: str) -> Callable[[], Tensor]:
        def make() -> Tensor:
            log.append(f"made {name}")
            return torch.ones(3)

        return make

    plan = [PlannedTensor(name, (3,), torch.float32, maker(name)) for name in "ab"]
    write_shard(tmp_path / "shard.pth", plan, lambda count: log.append(f"wrote {count}"))
    assert log == ["made a", "wrote 12", "made b", "wrote 12"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    write_shard(path, planned({"a": torch.ones(2)}))
    old = path.read_bytes()

    def fail() -> Tensor:
        raise OSError("the source went away")

    with pytest.raises(OSError, match="the source went away"):
        write_shard(path, [*planned({"a": torch.zeros(2)}), PlannedTensor("b", (2,), torch.float32, fail)])
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["consolidated.00.pth"]
