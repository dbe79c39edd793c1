"""GGUF files as they are read: any part of any kind of tensor, and whatever is wrong with a file told in a sentence."""

import random
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import open_file, open_weights
from model.gguf.file import GgufFile, read_gguf
from model.gguf.folder import unpacked
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError
from parallel.slices import Slice
from tests.gguf_files import add_byte_pairs, add_sentencepiece, random_blocks, save_gguf
from tests.hugging_face import STRETCHED, save_llama
from tests.unit.model.tokenizers import tiny

# Every kind of block that the package can decode.
UNKNOWN = ("Q1_0", "Q8_1", "Q8_K")
QUANTISED = [kind for kind in Kind if gguf.GGML_QUANT_SIZES[kind][0] > 1 and kind.name not in UNKNOWN]


def write_one(path: Path, blocks: np.ndarray, kind: Kind, name: str = "some.weight") -> np.ndarray:
    """A file with one tensor of these blocks [rows, bytes]; its numbers [rows, columns], as the package decodes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.dequantize(blocks, kind)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_any_part_of_a_tensor_is_that_part_of_the_whole(tmp_path: Path, kind: Kind) -> None:
    numbers = gguf.GGML_QUANT_SIZES[kind][0]
    blocks = random_blocks(kind, 7 * 3).reshape(7, -1)
    whole = torch.from_numpy(write_one(tmp_path / "x.gguf", blocks, kind))
    header = read_gguf(tmp_path / "x.gguf").file
    entry = header.tensors["some.weight"]
    assert (entry.shape, entry.dtype) == ((7, 3 * numbers), "float32")
    file = open_file(header)
    for own in (Slice(0, 7), Slice(2, 5), Slice(6, 7)):
        assert torch.equal(file.part(entry, 0, own), whole[own.start : own.stop])
    for own in (Slice(0, 3 * numbers), Slice(numbers, 2 * numbers), Slice(5, numbers + 1), Slice(numbers - 1, numbers)):
        assert torch.equal(file.part(entry, 1, own), whole[:, own.start : own.stop])


def test_a_tensor_of_many_numbers_is_decoded_in_pieces(tmp_path: Path) -> None:
    blocks = random_blocks(Kind.Q4_0, 2200 * 65).reshape(2200, -1)
    whole = torch.from_numpy(write_one(tmp_path / "x.gguf", blocks, Kind.Q4_0))
    assert whole.numel() > 2**22
    header = read_gguf(tmp_path / "x.gguf").file
    file, entry = GgufFile(header), header.tensors["some.weight"]
    assert torch.equal(file.part(entry, 0, Slice(1, 2200)), whole[1:])
    assert torch.equal(file.part(entry, 1, Slice(40, 2080)), whole[:, 40:])


def test_a_kind_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("some.weight", np.ones((2, 4), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RefusedError, match=r"x\.gguf: some\.weight is stored as I32, which the package gguf cannot"):
        read_gguf(path)


def description(data: bytes, name: str) -> int:
    """Where the description of a tensor stands: behind its name."""
    return data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


@pytest.mark.parametrize(
    ("place", "letter", "value", "says"),
    [
        (0, "I", 5, "some.weight has 5 dimensions; wanted 1 to 4"),
        (0, "I", 0, "some.weight has 0 dimensions; wanted 1 to 4"),
        (4, "Q", 65, "some.weight has rows of 65 numbers, which are not whole blocks of 32 (Q4_0)"),
        (4, "Q", 2**63, "some.weight has shape [7, 9223372036854775808], which no tensor has"),
        (12, "Q", 0, "some.weight has shape [0, 96], which no tensor has"),
        (12, "Q", 8, "is cut short: 512 bytes found, 560 expected"),
        (20, "I", 200, "some.weight is of kind 200, which the package gguf does not know"),
        (20, "I", 4, "some.weight is of kind 4, which the package gguf does not know"),
        (24, "Q", 7, "some.weight begins at byte 135, not at a multiple of 32"),
        (24, "Q", 32, "some.weight at byte 160 leaves a hole before it (128)"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_is_refused(
    tmp_path: Path, place: int, letter: str, value: int, says: str
) -> None:
    path = tmp_path / "x.gguf"
    write_one(path, random_blocks(Kind.Q4_0, 21).reshape(7, -1), Kind.Q4_0)
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{letter}", data, description(data, "some.weight") + place, value)
    path.write_bytes(data)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: ") + ".*" + re.escape(says)):
        read_gguf(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes); download it again"),
        (b"junk" * 100, "is not a GGUF file (starts with b'junkjunkjunkjunk'); download it again"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"tjgg\3\0\0\0" + bytes(100), "is a GGML file of the time before GGUF"),
        (b"GGUF\1\0\0\0" + bytes(100), "is GGUF of version 1; wanted version 2 or 3"),
        (b"GGUF\0\0\0\3" + bytes(100), "is GGUF of a big-endian machine; wanted"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16, "the name of key 1 of 18446744073709551615 at byte 24 takes 8"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\xff" * 8, "has 18446744073709551615 bytes, more than any"),
    ],
)  # fmt: skip
def test_what_is_no_gguf_file_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: ") + ".*" + re.escape(says)):
        open_checkpoint(path)


def test_what_is_not_there_or_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"x\.gguf: does not exist"):
        open_checkpoint(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").symlink_to("/dev/null")
    with pytest.raises(RefusedError, match=r"y\.gguf: is not a regular file"):
        open_checkpoint(tmp_path / "y.gguf")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> list[bytes]:
    """Two files: Llama 2's tokenizer with quantised weights, Llama 3's with scaled frequencies."""
    folder = tmp_path_factory.mktemp("healthy")
    second = save_llama(folder / "hf", vocab_size=360, intermediate_size=64)
    path = folder / "x.gguf"
    save_gguf(path, second, Kind.Q8_0, lambda writer: add_sentencepiece(writer, tokenizer.path))
    files = [path.read_bytes()]
    ranks = tiny.train_ranks()
    stretched = {**STRETCHED, "factor": 8.0}
    third = save_llama(
        folder / "hf", vocab_size=len(ranks) + 256, rope_parameters=stretched, max_position_embeddings=65536
    )
    save_gguf(path, third, Kind.F16, lambda writer: add_byte_pairs(writer, tiny.llama3_json(ranks)))
    return [*files, path.read_bytes()]


def read_everything(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    with unpacked(checkpoint) as source, open_weights(source) as reader:
        for weight in source.weights:
            found = reader.read(weight, Slice(0, weight.length))
            assert tuple(found.shape) == weight.shape
            assert bool(found.isfinite().all())


def test_a_file_that_ends_too_soon_is_refused_wherever_it_ends(tmp_path: Path, healthy: list[bytes]) -> None:
    path = tmp_path / "x.gguf"
    for data in healthy:
        path.write_bytes(data)
        read_everything(path)
        for size in [*range(4, 1500, 37), *range(1500, len(data), 3001), len(data) - 33]:
            path.write_bytes(data[:size])
            with pytest.raises(RefusedError, match=rf"x\.gguf: is cut short.*: {size} bytes found"):
                read_everything(path)


LENGTHS = (0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def spoil(chance: random.Random, data: bytes) -> bytes:
    """A few bits, bytes or lengths of a file changed, taken out or put in; mostly of its header."""
    spoilt = bytearray(data)
    # Keys and sizes, the whole header, everything.
    reach = chance.choice((400, 1500, len(data) // 3, len(data) - 9))
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(4, reach)
        how = chance.randrange(6)
        if how == 0:
            spoilt[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            spoilt[place : place + 8] = struct.pack("<Q", chance.choice(LENGTHS))
        elif how == 2:
            spoilt[place : place + 4] = struct.pack("<I", chance.choice(LENGTHS) % 2**32)
        elif how == 3:
            spoilt[place : place + 4] = struct.pack("<I", chance.randrange(16))
        elif how == 4:
            del spoilt[place : place + chance.choice((1, 4, 8, 100))]
        else:
            spoilt[place:place] = chance.randbytes(chance.choice((1, 4, 8, 32)))
    return bytes(spoilt)


@pytest.mark.parametrize("batch", range(4))
def test_a_spoilt_file_is_read_or_refused_and_nothing_else(tmp_path: Path, healthy: list[bytes], batch: int) -> None:
    refused: list[str] = []
    for seed in range(100 * batch, 100 * batch + 100):
        chance = random.Random(seed)
        (tmp_path / "x.gguf").write_bytes(spoil(chance, chance.choice(healthy)))
        try:
            read_everything(tmp_path / "x.gguf")
        except RefusedError as error:
            refused.append(str(error))
    assert 50 < len(refused) < 100
    assert all(text.startswith(f"{tmp_path / 'x.gguf'}: ") for text in refused)
    assert all(text.isprintable() and len(text) < 600 for text in refused)
