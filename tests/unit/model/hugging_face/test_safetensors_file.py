"""Our reader and writer of safetensors against the safetensors library."""

import json
import os
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.shard_writer import PlannedTensor, planned
from model.hugging_face.safetensors_file import read_safetensors_header, write_safetensors
from parallel.errors import RefusedError
from tests.hugging_face import same_bits

NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(6, 10, generator=generator)
    return {
        "three numbers": base[0, :3].to(torch.float16),
        "float32": base,
        "bfloat16": base.to(torch.bfloat16),
        "one number": torch.tensor(7.5),
        "not contiguous": base.T,
        "a slice": base.narrow(1, 2, 5),
        "no numbers": torch.empty(0, 4),
        'a "name" of \u00fc': torch.ones(1),
        "spoilt": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, planned(tensors()), {"format": "pt"})
    return path


def test_the_library_reads_what_we_write_to_the_bit(written: Path) -> None:
    loaded = load_file(written)
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert same_bits(loaded[name], tensor.contiguous()), name
    with safetensors.safe_open(written, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("with_metadata", [True, False])
def test_we_find_each_tensor_where_the_library_wrote_it(tmp_path: Path, with_metadata: bool) -> None:
    path = tmp_path / "model.safetensors"
    plain = {name: tensor.contiguous().clone() for name, tensor in tensors().items()}
    save_file(plain, path, {"format": "pt"} if with_metadata else None)
    header, content = read_safetensors_header(path), path.read_bytes()
    assert header.kind == "safetensors"
    assert header.tensors.keys() == plain.keys()
    for name, tensor in plain.items():
        entry = header.tensors[name]
        assert (entry.dtype, entry.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert (entry.record, entry.record_start, entry.record_bytes) == (name, entry.start, entry.nbytes)
        assert entry.crc32 is None
        assert content[entry.start : entry.start + entry.nbytes] == bytes(tensor.flatten().view(torch.uint8).tolist())


def test_we_read_what_we_write(written: Path) -> None:
    found = read_safetensors_header(written).tensors
    assert {name: entry.shape for name, entry in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors().items()
    }


def test_every_number_is_aligned_whatever_stands_before_it(written: Path) -> None:
    found = read_safetensors_header(written).tensors
    assert min(entry.start for entry in found.values()) % 64 == 0
    for name, entry in found.items():
        assert entry.start % tensors()[name].element_size() == 0, name


def test_a_file_without_tensors_is_written_and_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "none.safetensors", [], {})
    assert read_safetensors_header(tmp_path / "none.safetensors").tensors == {}
    assert load_file(tmp_path / "none.safetensors") == {}


def test_tensors_are_made_one_at_a_time_and_their_bytes_are_told(tmp_path: Path) -> None:
    log: list[str] = []

    def maker(name: str) -> Callable[[], Tensor]:
        def make() -> Tensor:
            log.append(f"made {name}")
            return torch.ones(3)

        return make

    plan = [PlannedTensor(name, (3,), torch.float32, maker(name)) for name in "ab"]
    write_safetensors(tmp_path / "model.safetensors", plan, {}, lambda count: log.append(f"wrote {count}"))
    assert log == ["made a", "wrote 12", "made b", "wrote 12"]


def test_a_failure_leaves_the_old_file_and_no_other(written: Path) -> None:
    old = written.read_bytes()

    def fail() -> Tensor:
        raise OSError("the source went away")

    with pytest.raises(OSError, match="the source went away"):
        write_safetensors(written, [*planned({"a": torch.zeros(2)}), PlannedTensor("b", (2,), torch.float32, fail)], {})
    assert written.read_bytes() == old
    assert os.listdir(written.parent) == [written.name]


def file_of(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def table(**changes: object) -> dict[str, Any]:
    """A right description of 16 bytes with `changes`."""
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


TWO = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
}
FAULTS = {
    "empty": (b"", "is empty (0 bytes); download it again"),
    "four bytes": (b"abcd", "is not a safetensors file (starts with b'abcd')"),
    "a length alone": (struct.pack("<Q", 2), "is not a safetensors file"),
    "a web page": (
        b"<!DOCTYPE html><html>404</html>",
        "is a web page (starts with b'<!DOCTYPE html><'); download it again",
    ),
    "a git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a zip file": (b"PK\x03\x04" + bytes(60), "is a PyTorch zip file, not safetensors; name it .bin or .pth"),
    "a header beyond the limit": (file_of(table(), length=10**8 + 1), "is not a safetensors file"),
    "a header cut short": (file_of(table())[:40], "is cut short: 40 bytes found, its header alone has 70"),
    "data cut short": (file_of(table())[:-1], "is cut short: 85 bytes found, 86 expected; download it again"),
    "more than it tells": (file_of(table()) + b"!", "has 87 bytes, 1 more than its header tells of"),
    "no JSON": (file_of(b'{"a": }'), "its header:1:7: is not valid JSON: Expecting value"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "its header is not UTF-8 text (byte 2)"),
    "nested without end": (file_of(b'{"a":' + b"[" * 10**5), "nested too deeply"),
    "a key twice": (
        file_of(f"{json.dumps(table())[:-1]}, {json.dumps(table())[1:]}".encode()),
        "key 'a' is given twice",
    ),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}, **table()}), "its __metadata__ are not texts by name"),
    "metadata of a list": (file_of({"__metadata__": [], **table()}), "its __metadata__ are not texts by name"),
    "no description": (file_of({"a": 7}), "a is described by 7; wanted dtype, shape and data_offsets"),
    "a key too many": (file_of(table(strides=[1])), "wanted dtype, shape and data_offsets"),
    "float64": (file_of(table(dtype="F64", shape=[2])), 'a has dtype "F64"; wanted F32, F16, BF16'),
    "int8": (file_of(table(dtype="I8", shape=[16])), 'a has dtype "I8"; wanted'),
    "float8": (file_of(table(dtype="F8_E4M3", shape=[16])), 'a has dtype "F8_E4M3"; wanted'),
    "a dtype that is no text": (file_of(table(dtype=["F32"])), 'a has dtype ["F32"]; wanted'),
    "a negative size": (file_of(table(shape=[-4])), "a has shape [-4]"),
    "a size that is true": (file_of(table(shape=[True, 4])), "a has shape [true, 4]"),
    "a size of half": (file_of(table(shape=[0.5])), "a has shape [0.5]"),
    "a size beyond 64 bits": (file_of(table(shape=[2**64])), "a has shape [18446744073709551616]"),
    "many dimensions": (file_of(table(shape=[4] + [1] * 2000)), "which no tensor has"),
    "offsets turned around": (file_of(table(data_offsets=[16, 0])), "at [16, 0], which no tensor has"),
    "one offset": (file_of(table(data_offsets=[16])), "at [16], which no tensor has"),
    "another size than its shape": (file_of(table(shape=[5])), "shape [5] in F32, 20 bytes, but its offsets span 16"),
    "a hole": (file_of(table(shape=[2], data_offsets=[8, 16])), "a at byte 78 leaves a hole before it"),
    "an overlap": (
        file_of({"a": TWO["a"], "b": {**TWO["b"], "data_offsets": [4, 12]}}),
        "overlaps the tensor before it",
    ),
}


# What the library takes and we do not: other dtypes, and what JSON leaves open.
LIBRARY_TAKES = {"a key twice", "a key too many", "float64", "int8", "float8", "many dimensions"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_right_is_refused_with_what_is_wrong(tmp_path: Path, fault: str) -> None:
    content, says = FAULTS[fault]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=f"^{re.escape(str(path))}: .*{re.escape(says)}"):
        read_safetensors_header(path)
    assert library_takes(content) == (fault in LIBRARY_TAKES)


def library_takes(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is a folder; wanted a file"):
        read_safetensors_header(tmp_path)
    with pytest.raises(RefusedError, match="does not exist"):
        read_safetensors_header(tmp_path / "model.safetensors")


def test_every_cut_of_a_file_is_refused(written: Path) -> None:
    content = written.read_bytes()
    for size in (*range(0, 300, 7), *range(300, len(content), 97), len(content) - 1):
        written.write_bytes(content[:size])
        with pytest.raises(RefusedError):
            read_safetensors_header(written)


def test_mutated_headers_are_refused_or_read_as_the_library_reads_them(written: Path) -> None:
    """One kind of error, and never another meaning than the library's."""
    content = written.read_bytes()
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(7)
    accepted = 0
    for _ in range(800):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            place = rng.randrange(header_bytes)
            # Digits and JSON's own letters, so that not everything fails at the first look.
            changed[place] = rng.choice((changed[place] ^ (1 << rng.randrange(8)), *b'0123456789"[]{},: '))
        written.write_bytes(changed)
        try:
            found = read_safetensors_header(written).tensors
        except RefusedError:
            continue
        accepted += 1
        theirs = dict(safetensors.deserialize(bytes(changed)))
        assert found.keys() == theirs.keys()
        for name, entry in found.items():
            assert entry.dtype == NAMES[theirs[name]["dtype"]]
            assert list(entry.shape) == theirs[name]["shape"]
            assert bytes(changed[entry.start : entry.start + entry.nbytes]) == bytes(theirs[name]["data"])
    # Most are refused; letters of names and of padding may change.
    assert 20 < accepted < 600
