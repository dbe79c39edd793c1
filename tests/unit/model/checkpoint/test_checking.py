"""What a record is refused for when it is read: another checksum, a number that is not finite, a missing end."""

import math
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.checking import Cancelled, Check, check_record
from model.checkpoint.files import FileHeader
from model.checkpoint.legacy import read_legacy_header
from model.checkpoint.shard_writer import planned, write_shard
from model.checkpoint.torch_file import read_header
from parallel.errors import RefusedError

# Records are read in pieces of this size.
PIECE_BYTES = 2**21


def header_of(path: Path, tensors: dict[str, Tensor]) -> FileHeader:
    write_shard(path, planned(tensors))
    return read_header(path)


def check_of(header: FileHeader, *names: str) -> Check:
    """The check of the record in which these tensors stand."""
    entries = tuple(header.tensors[name] for name in names)
    first = entries[0]
    return Check(header, first.record, first.record_start, first.record_bytes, first.crc32, entries)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


# One number, less than a piece, exactly one, one more, and several.
SIZES = [1, 1000, PIECE_BYTES // 4, PIECE_BYTES // 4 + 1, 3 * PIECE_BYTES // 4 - 1]


@pytest.mark.parametrize("size", SIZES)
def test_a_sound_record_passes_and_each_of_its_bytes_is_counted_once(path: Path, size: int) -> None:
    told: list[int] = []
    check_record(check_of(header_of(path, {"w": torch.ones(size)}), "w"), told.append)
    assert sum(told) == 4 * size
    assert max(told) <= PIECE_BYTES


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_bit_anywhere_is_told_with_both_checksums(path: Path, size: int) -> None:
    header = header_of(path, {"layers.0.attention.wq.weight": torch.ones(size)})
    check = check_of(header, "layers.0.attention.wq.weight")
    for place in {0, 2 * size, 4 * size - 1}:
        with path.open("r+b") as file:
            file.seek(check.start + place)
            byte = file.read(1)[0]
            file.seek(check.start + place)
            file.write(bytes([byte ^ 1]))
            file.flush()
            sentence = (
                rf"consolidated\.00\.pth: layers\.0\.attention\.wq\.weight is damaged: record data/0 has CRC-32 "
                rf"[0-9a-f]{{8}}, the file says {check.crc32:08x}; get the file again$"
            )
            with pytest.raises(RefusedError, match=sentence):
                check_record(check)
            file.seek(check.start + place)
            file.write(bytes([byte]))
    check_record(check)


def test_every_tensor_of_a_damaged_record_is_named(path: Path) -> None:
    base = torch.ones(8, 4)
    torch.save({"wq": base[:5], "wk": base[5:]}, path)
    header = read_header(path)
    check = check_of(header, "wq", "wk")
    check_record(check)
    with path.open("r+b") as file:
        file.seek(header.tensors["wk"].start)
        file.write(b"\x01")
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: wq, wk is damaged: record data/0"):
        check_record(check)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_number_that_is_not_finite_is_told_with_its_place(path: Path, dtype: torch.dtype, value: float) -> None:
    tensor = torch.ones(3, 5, dtype=dtype)
    tensor[2, 1] = value
    check = check_of(header_of(path, {"norm.weight": tensor}), "norm.weight")
    sentence = (
        rf"consolidated\.00\.pth: norm\.weight holds 1 number that is not finite, the first {value} at \[2, 1\]; "
        "the weights are spoilt: get the file again$"
    )
    with pytest.raises(RefusedError, match=sentence):
        check_record(check)


@pytest.mark.parametrize("place", [0, PIECE_BYTES // 2, 2 * PIECE_BYTES - 1])
def test_an_infinity_in_any_piece_is_found_even_beside_its_opposite(path: Path, place: int) -> None:
    tensor = torch.ones(2 * PIECE_BYTES, dtype=torch.bfloat16)
    tensor[place], tensor[place ^ 1] = math.inf, -math.inf
    check = check_of(header_of(path, {"w": tensor}), "w")
    with pytest.raises(
        RefusedError, match=rf"w holds 2 numbers that are not finite, the first -?inf at \[{place & ~1}\]"
    ):
        check_record(check)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 3e38), (torch.bfloat16, 3e38), (torch.float16, 65504.0)], ids=str
)
def test_large_numbers_whose_sum_overflows_are_no_fault(path: Path, dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((1000,), value, dtype=dtype)
    assert torch.isfinite(tensor).all() and not torch.isfinite(tensor.sum())
    check_record(check_of(header_of(path, {"w": tensor}), "w"))


def test_numbers_beside_a_tensor_in_its_record_may_be_anything(path: Path) -> None:
    """As where a weight is a view of a larger storage: what nobody reads spoils nothing."""
    base = torch.ones(8)
    base[7] = math.nan
    torch.save({"w": base[:5]}, path)
    check_record(check_of(read_header(path), "w"))


def test_a_file_that_ends_early_is_told_with_its_last_byte(path: Path) -> None:
    header = header_of(path, {"w": torch.ones(1000)})
    check = check_of(header, "w")
    with path.open("r+b") as file:
        file.truncate(check.start + 100)
    sentence = rf"consolidated\.00\.pth: ends at byte {check.start + 100}, though its header says more"
    with pytest.raises(RefusedError, match=sentence):
        check_record(check)


def test_a_check_that_is_no_longer_wanted_ends_at_the_next_piece(path: Path) -> None:
    check = check_of(header_of(path, {"w": torch.ones(PIECE_BYTES)}), "w")
    cancelled, told = threading.Event(), []

    def done(count: int) -> None:
        told.append(count)
        cancelled.set()

    with pytest.raises(Cancelled):
        check_record(check, done, cancelled)
    assert told == [PIECE_BYTES]


def test_numbers_of_a_legacy_file_are_looked_at_though_it_has_no_checksum(path: Path) -> None:
    spoilt = torch.ones(4)
    spoilt[3] = math.nan
    torch.save({"good": torch.ones(4), "bad": spoilt}, path, _use_new_zipfile_serialization=False)
    header = read_legacy_header(path)
    check_record(check_of(header, "good"))
    with pytest.raises(RefusedError, match=r"bad holds 1 number that is not finite, the first nan at \[3\]"):
        check_record(check_of(header, "bad"))
