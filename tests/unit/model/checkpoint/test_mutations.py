"""A shard with a few changed bytes is refused, or its weights are what they were: nothing else comes out."""

import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from parallel.errors import RefusedError
from tests.checkpoints import SHARD, whole_weights
from tests.minis import Mini

# So small that a third of the file is zip and pickle, where a change does more than a checksum can tell.
SMALL = Mini(dim=8, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=8, vocabulary=16)
FIRST = SHARD.format(0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Shard:
    """A sound file: its bytes, and where its parts stand."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            self.directory = range(archive.start_dir, len(self.content))
        self.starts = {}
        headers, data = [], []
        for info in infos:
            name_bytes, extra_bytes = struct.unpack_from("<HH", self.content, info.header_offset + 26)
            start = info.header_offset + 30 + name_bytes + extra_bytes
            self.starts[info.filename.partition("/")[2]] = start
            headers += range(info.header_offset, start)
            (data if "/data/" in info.filename else headers).extend(range(start, start + info.file_size))
        start = self.starts["data.pkl"]
        self.pickle = range(start, start + next(info.file_size for info in infos if info.filename.endswith("data.pkl")))
        # Each part is hit as often as any other, however small it is.
        self.parts = [range(len(self.content)), self.directory, headers, self.pickle, data]


Mutation = Callable[[bytearray, int, random.Random], None]


def flip_a_bit(content: bytearray, place: int, dice: random.Random) -> None:
    content[place] ^= 1 << dice.randrange(8)


def set_a_byte(content: bytearray, place: int, dice: random.Random) -> None:
    content[place] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])


def set_a_number(content: bytearray, place: int, dice: random.Random) -> None:
    """As a length, an offset or a count would be changed."""
    width = dice.choice(["<H", "<I", "<Q"])
    size = struct.calcsize(width)
    place = min(place, len(content) - size)
    (old,) = struct.unpack_from(width, content, place)
    new = dice.choice([0, old + 1, old - 1, old + 64, old * 2, dice.getrandbits(8 * size)])
    struct.pack_into(width, content, place, new % 2 ** (8 * size))


def cut_the_end(content: bytearray, place: int, dice: random.Random) -> None:
    del content[place:]


def delete_bytes(content: bytearray, place: int, dice: random.Random) -> None:
    del content[place : place + dice.randint(1, 70)]


def insert_bytes(content: bytearray, place: int, dice: random.Random) -> None:
    content[place:place] = dice.randbytes(dice.randint(1, 70))


def zero_a_range(content: bytearray, place: int, dice: random.Random) -> None:
    stop = min(len(content), place + dice.randint(1, 300))
    content[place:stop] = bytes(stop - place)


def swap_two_ranges(content: bytearray, place: int, dice: random.Random) -> None:
    size = dice.choice([1, 4, 8, 32, 46, 64, 256])
    one, other = (min(spot, len(content) - size) for spot in (place, dice.randrange(len(content))))
    content[one : one + size], content[other : other + size] = (
        content[other : other + size],
        content[one : one + size],
    )


def repeat_a_range(content: bytearray, place: int, dice: random.Random) -> None:
    """As a write that went to the wrong place."""
    size = dice.choice([4, 32, 46, 64, 256])
    there = dice.randrange(len(content))
    content[there : there + size] = content[place : place + size][: len(content) - there]


def change_letters(content: bytearray, place: int, dice: random.Random) -> None:
    """Names of records and weights, of which a changed one may be another's."""
    found = [spot for spot in range(place, min(place + 400, len(content))) if chr(content[spot]).isalnum()]
    if found:
        content[dice.choice(found)] = ord(dice.choice("0123456789awknvo_"))


def append_bytes(content: bytearray, place: int, dice: random.Random) -> None:
    content += dice.choice([bytes(64), dice.randbytes(30), content[place:], bytes(content)])


MUTATIONS: list[Mutation] = [
    *(flip_a_bit, set_a_byte, set_a_number, cut_the_end, delete_bytes, insert_bytes),
    *(zero_a_range, swap_two_ranges, repeat_a_range, change_letters, append_bytes),
]


def loaded(folder: Path) -> dict[str, Tensor]:
    return load_weights(open_checkpoint(folder), 0, 1, torch.float32, torch.device("cpu"))


def outcome_of(folder: Path, whole: dict[str, Tensor]) -> str:
    """'refused', 'unchanged', or what should never be."""
    try:
        found = loaded(folder)
    except RefusedError as refused:
        text = str(refused)
        return "refused" if text.startswith(str(folder)) and "\n" not in text else f"refused with {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if found.keys() != whole.keys():
        return "other keys"
    changed = [name for name in whole if not torch.equal(found[name], whole[name])]
    return f"changed weights: {changed}" if changed else "unchanged"


def drill(place: Path, seeds: range) -> Counter[tuple[str, str]]:
    """One mutation (sometimes two or three) for each seed; how often each kind ended how."""
    place.mkdir()
    whole = whole_weights(SMALL)
    theirs = SMALL.write(place / "theirs", 1)
    ours = place / "ours"
    write_meta_folder(open_checkpoint(theirs), ours, 1)
    # Without a list of checksums, as Meta's folders are.
    (ours / "shards.json").unlink()
    shards = {folder: Shard(folder / FIRST) for folder in (theirs, ours)}
    assert all(outcome_of(folder, whole) == "unchanged" for folder in shards)
    counts: Counter[tuple[str, str]] = Counter()
    failures = []
    for seed in seeds:
        dice = random.Random(seed)
        folder = dice.choice([theirs, ours])
        shard = shards[folder]
        content, mutation = bytearray(shard.content), dice.choice(MUTATIONS)
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            if content:
                mutation(content, min(dice.choice(dice.choice(shard.parts)), len(content) - 1), dice)
        (folder / FIRST).write_bytes(content)
        outcome = outcome_of(folder, whole)
        if outcome not in ("refused", "unchanged"):
            failures.append(f"seed {seed}, {mutation.__name__} in {folder.name}: {outcome}")
        counts[mutation.__name__, outcome if bytes(content) != shard.content else "no change made"] += 1
    assert failures == []
    return counts


def test_of_1000_changed_shards_none_is_read_with_changed_weights(tmp_path: Path) -> None:
    counts = drill(tmp_path / "drill", range(1000))
    ends = Counter({"refused": 0, "unchanged": 0})
    for (_, outcome), count in counts.items():
        ends[outcome] += count
    # A change that does not matter is rare: padding, dates, names that nobody reads.
    assert ends["refused"] > 600
    assert ends["unchanged"] > 50


@pytest.mark.drill
def test_of_10000_changed_shards_none_is_read_with_changed_weights(tmp_path: Path) -> None:
    counts = drill(tmp_path / "drill", range(10_000, 20_000))
    for (mutation, outcome), count in sorted(counts.items()):
        print(f"{mutation:16} {outcome:15} {count}")
    assert sum(counts.values()) == 10_000


# What a checksum cannot tell.


def forge(path: Path, record: str) -> None:
    """Change a number of a record, and write the checksum that now is right wherever the zip has it."""
    shard = Shard(path)
    content = bytearray(shard.content)
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(f"/{record}"))
    start = shard.starts[record]
    content[start + 2] ^= 1
    new = struct.pack("<I", zlib.crc32(content[start : start + info.file_size]))
    path.write_bytes(bytes(content).replace(struct.pack("<I", info.CRC), new))


def test_a_forged_checksum_is_believed_by_a_folder_without_a_list_and_told_by_one_with_it(tmp_path: Path) -> None:
    source = SMALL.write(tmp_path / "source", 1)
    write_meta_folder(open_checkpoint(source), tmp_path / "listed", 1)
    shutil.copytree(tmp_path / "listed", tmp_path / "bare")
    (tmp_path / "bare" / "shards.json").unlink()
    for name in ("listed", "bare"):
        forge(tmp_path / name / FIRST, "data/1")
    (changed,) = [
        name for name, weight in loaded(tmp_path / "bare").items() if not weight.equal(whole_weights(SMALL)[name])
    ]
    assert changed == "layers.0.attention.wq.weight"
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: .*wq\.weight is not what shards\.json lists"):
        loaded(tmp_path / "listed")


def test_a_list_that_was_forged_too_is_believed(tmp_path: Path) -> None:
    """The list is no signature: who can write the folder can write it."""
    write_meta_folder(open_checkpoint(SMALL.write(tmp_path / "source", 1)), tmp_path / "ckpt", 1)
    forge(tmp_path / "ckpt" / FIRST, "data/1")
    listed = json.loads((tmp_path / "ckpt" / "shards.json").read_text())
    with zipfile.ZipFile(tmp_path / "ckpt" / FIRST) as archive:
        listed["shards"][0]["crc32"]["layers.0.attention.wq.weight"] = archive.getinfo("archive/data/1").CRC
    (tmp_path / "ckpt" / "shards.json").write_text(json.dumps(listed))
    assert not torch.equal(
        loaded(tmp_path / "ckpt")["layers.0.attention.wq.weight"], whole_weights(SMALL)["layers.0.attention.wq.weight"]
    )


def test_the_files_are_small_enough_that_their_headers_are_hit(tmp_path: Path) -> None:
    shard = Shard(SMALL.write(tmp_path / "ckpt", 1) / FIRST)
    data = sum(weight.nbytes for weight in whole_weights(SMALL).values())
    assert data < os.path.getsize(tmp_path / "ckpt" / FIRST) / 1.5
    assert len(shard.pickle) > 500
