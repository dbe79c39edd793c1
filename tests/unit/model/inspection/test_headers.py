"""The report from headers, against what torch.load finds in the same files, and against the published numbers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from model.inspection.headers import inspect_checkpoint, rank_counts
from model.inspection.report import CopiesReport, Inspection
from model.params import Params
from model.tokenizers.base import Tokenizer
from tests.hugging_face import meta_weights, save_llama, stored_tensors
from tests.reference import merged_weights
from tests.sparse_shards import (
    LLAMA_3_70B,
    LLAMA_3_70B_JSON,
    Published,
    own_checksum,
    write_sparse_folder,
)
from tests.unit.model.conftest import MakeFolder


def inspect(folder: Path) -> Inspection:
    return inspect_checkpoint(open_checkpoint(folder))


def shards_of(folder: Path) -> list[dict[str, Tensor]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("consolidated.*.pth"))]


def edit(folder: Path, rank: int, **changes: Tensor) -> None:
    """Save a shard anew with some tensors replaced: `output_weight` for output.weight."""
    path = folder / f"consolidated.{rank:02d}.pth"
    state = torch.load(path, weights_only=True)
    torch.save(state | {name.replace("_weight", ".weight"): tensor for name, tensor in changes.items()}, path)


@pytest.mark.parametrize(("embedding_dim", "mp"), [(0, 2), (1, 2), (1, 1)])
def test_the_table_of_weights_is_what_the_files_hold(make_folder: MakeFolder, embedding_dim: int, mp: int) -> None:
    folder = make_folder("ckpt", mp=mp, embedding_dim=embedding_dim, n_kv_heads=2)
    shards, whole = shards_of(folder), merged_weights(folder)
    cuts = {"wo": 1, "w2": 1, "attention_norm": None, "ffn_norm": None, "norm": None, "tok_embeddings": embedding_dim}
    report = inspect(folder)
    assert sum(kind.count for kind in report.weights) == len(whole)
    for kind in report.weights:
        for layer in range(2 if "*" in kind.name else 1):
            name = kind.name.replace("*", str(layer))
            assert kind.shape == tuple(whole[name].shape)
            assert kind.parts == tuple(tuple(shard[name].shape) for shard in shards)
            assert kind.dtypes == ("float32",)
        part = kind.name.split(".")[-2]
        assert kind.cut == (cuts.get(part, 0) if mp > 1 else None), kind.name
    assert report.parameters == report.stored_parameters == sum(tensor.numel() for tensor in whole.values())
    assert [file.numbers for file in report.files] == [
        {"float32": sum(tensor.numel() for tensor in shard.values())} for shard in shards
    ]
    assert [file.size_bytes for file in report.files] == [
        path.stat().st_size for path in sorted(folder.glob("consolidated.*.pth"))
    ]


def test_an_uneven_cut_shows_what_each_shard_holds(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source", n_kv_heads=2, vocab_size=22)
    write_meta_folder(open_checkpoint(source), tmp_path / "three", 3)
    report, shards = inspect(tmp_path / "three"), shards_of(tmp_path / "three")
    kinds = {kind.name: kind for kind in report.weights}
    for name in ("output.weight", "layers.*.attention.wq.weight", "layers.*.attention.wk.weight"):
        found = [tuple(shard[name.replace("*", "0")].shape) for shard in shards]
        assert list(kinds[name].parts) == found
        assert len(set(found)) == (1 if "wk" in name else 2)
    assert report.shards_json == "agrees"
    # Two KV heads on three ranks: the second stands on two of them.
    assert report.kv_copies == (1, 2)
    assert report.parameters == inspect(source).parameters
    copied = sum(
        shard[f"layers.{n}.attention.{part}.weight"].numel()
        for shard in shards
        for n in (0, 1)
        for part in ("wk", "wv")
    )
    once = 2 * 2 * 16 * 32
    assert report.stored_parameters - report.parameters == copied - once > 0


def test_dtypes_of_a_mixture_are_counted(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")
    edit(folder, 0, norm_weight=torch.ones(32, dtype=torch.bfloat16))
    report = inspect(folder)
    assert report.files[0].numbers["bfloat16"] == 32
    assert [kind.dtypes for kind in report.weights if kind.name == "norm.weight"] == [("bfloat16",)]
    assert report.dtype == "float32"


SCALED: dict[str, Any] = {"vocab_size": 128256, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}


def tied_checksum(name: str, rank: int) -> int:
    return own_checksum(name.replace("output", "tok_embeddings"), rank)


def doubled_checksum(name: str, rank: int) -> int:
    """Neighbouring shards hold the same KV head."""
    return own_checksum(name, rank // 2 if ".wk." in name or ".wv." in name else rank)


def test_llama_3_70b_has_the_published_number_of_parameters(tmp_path: Path) -> None:
    report = inspect(write_sparse_folder(tmp_path / "70b", LLAMA_3_70B, LLAMA_3_70B_JSON))
    assert report.family == "the shape of Llama 3 70B"
    assert round(report.parameters / 1e9, 3) == 70.554
    assert report.stored_parameters == report.parameters
    assert {round(file.size_bytes / 1e9, 2) for file in report.files} == {17.64}
    assert (report.mp, len(report.files), report.tied, report.kv_copies) == (8, 8, False, (1, 1))
    assert report.copies is not None
    assert (report.copies.tensors, report.copies.equal) == (161, True)
    assert report.rope_theta == 500000.0
    assert report.rope_reason == "base from params.json"


def test_kv_heads_that_neighbours_both_hold_count_once(tmp_path: Path) -> None:
    """Llama 3.1 405B, the 16 files; of its 126 layers 6, so that it takes no second."""
    model = Published(mp=16, dim=16384, layers=6, heads=128, kv_heads=16, ffn=53248, vocabulary=128256)
    params = {
        "dim": 16384,
        "n_layers": 6,
        "n_heads": 128,
        "n_kv_heads": 16,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.2,
        **SCALED,
    }
    report = inspect(write_sparse_folder(tmp_path / "405b", model, params, doubled_checksum))
    assert (report.n_kv_heads, report.kv_copies) == (8, (2, 2))
    outside = 2 * 128256 * 16384 + 16384
    stored, distinct = (
        (count - outside) // 6 * 126 + outside for count in (report.stored_parameters, report.parameters)
    )
    assert round(stored / 1e9, 3) == 410.081
    assert round(distinct / 1e9, 3) == 405.853
    assert report.rope_scaling is not None
    assert report.rope_scaling.factor == 8


def test_a_tied_output_counts_once(tmp_path: Path) -> None:
    """Llama 3.2 1B: the file holds the embedding twice."""
    model = Published(mp=1, dim=2048, layers=16, heads=32, kv_heads=8, ffn=8192, vocabulary=128256)
    params = {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "ffn_dim_multiplier": 1.5, **SCALED}
    report = inspect(write_sparse_folder(tmp_path / "1b", model, params, tied_checksum))
    assert report.family == "the shape of Llama 3.2 1B"
    assert report.tied is True
    assert "equal CRC-32" in report.tied_reason
    assert round(report.stored_parameters / 1e9, 3) == 1.498
    assert report.stored_parameters - report.parameters == 128256 * 2048
    assert report.rope_scaling is not None
    assert report.rope_scaling.factor == 32
    assert "Llama 3.2" in report.rope_reason


@pytest.mark.parametrize(("mp", "embedding_dim", "tied"), [(1, 1, True), (2, 0, True), (2, 1, None)])
def test_headers_tell_a_tied_output_where_both_are_cut_alike(
    make_folder: MakeFolder, mp: int, embedding_dim: int, tied: bool | None
) -> None:
    folder = make_folder("ckpt", mp=mp, embedding_dim=embedding_dim)
    rows = merged_weights(folder)["tok_embeddings.weight"].chunk(mp, 0)
    assert inspect(folder).tied is (False if tied else None)
    for rank in range(mp):
        edit(folder, rank, output_weight=rows[rank].clone())
    assert inspect(folder).tied is tied


def test_two_names_of_the_same_numbers_are_tied(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")
    state = torch.load(folder / "consolidated.00.pth", weights_only=True)
    edit(folder, 0, output_weight=state["output.weight"], tok_embeddings_weight=state["output.weight"])
    report = inspect(folder)
    assert (report.tied, report.tied_reason) == (True, "both are the same numbers of the same file")


def test_a_hugging_face_folder_without_an_output_is_tied(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", tie_word_embeddings=True, num_key_value_heads=2)
    report = inspect(tmp_path / "hf")
    stored = stored_tensors(tmp_path / "hf")
    assert "lm_head.weight" not in stored
    assert (report.layout, report.tied, report.shards_json, report.copies) == ("hf", True, None, None)
    assert report.parameters == report.stored_parameters == sum(tensor.numel() for tensor in stored.values())
    names = {kind.name.replace("*", str(layer)) for kind in report.weights for layer in (0, 1)}
    assert names == set(stored)
    assert {kind.name.split(".")[-2] for kind in report.weights if kind.turned} == {"q_proj", "k_proj"}
    assert set(meta_weights(stored, 4, 2)) < set(open_checkpoint(tmp_path / "hf").pieces)


def test_checksums_of_shared_records_do_not_tell_whether_norms_are_equal(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2)
    assert inspect(folder).copies == CopiesReport(tensors=5, equal=True)
    for rank in range(2):
        both = torch.ones(64)
        edit(folder, rank, norm_weight=both[:32], **{"layers.0.ffn_norm_weight": both[32:]})
    assert inspect(folder).copies == CopiesReport(tensors=5, equal=None)


def sizes(dim: int, heads: int, kv_heads: int, ffn: int, vocabulary: int) -> Params:
    return Params(
        dim=dim,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=kv_heads,
        ffn_dim=ffn,
        vocab_size=vocabulary,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_reason="",
    )


@pytest.mark.parametrize(
    ("params", "even", "repeated"),
    [
        (sizes(4096, 32, 32, 11008, 32000), (1, 2, 4, 8, 16, 32), ()),
        (sizes(5120, 40, 40, 13824, 32000), (1, 2, 4, 8), ()),
        (sizes(6656, 52, 52, 17920, 32000), (1, 2, 4), ()),
        (sizes(8192, 64, 64, 22016, 32000), (1, 2, 4, 8, 16, 32, 64), ()),
        (sizes(8192, 64, 8, 28672, 32000), (1, 2, 4, 8), (16, 32, 64)),
        (sizes(8192, 64, 8, 28672, 32016), (1, 2, 4, 8), (16,)),
        (sizes(4096, 32, 32, 11008, 32016), (1, 2, 4, 8, 16), ()),
        (sizes(4096, 32, 8, 14336, 128256), (1, 2, 4, 8), (16, 32)),
        (sizes(3072, 24, 8, 8192, 128256), (1, 2, 4, 8), ()),
    ],
)
def test_published_sizes_run_evenly_at_the_published_mp_sizes(
    params: Params, even: tuple[int, ...], repeated: tuple[int, ...]
) -> None:
    found = rank_counts(params)
    assert (found.even, found.repeated) == (even, repeated)
    assert sorted(found.even + found.repeated + found.uneven) == list(range(1, params.n_heads + 1))


def test_a_tokenizer_is_told_whether_it_matches_or_not(
    make_folder: MakeFolder, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = make_folder("ckpt", vocab_size=360)
    assert inspect(folder).tokenizer is None
    (folder / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    found = inspect(folder).tokenizer
    assert found is not None
    assert (found.kind, found.pieces, found.matches, found.problem) == ("SentencePiece", 360, True, None)
    assert found.path == str(folder / "tokenizer.model")
    other = inspect(make_folder("other", mp=2)).tokenizer
    assert other is None
    # Meta's downloads have it above the shards; these are of another model.
    (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    other = inspect(tmp_path / "other").tokenizer
    assert other is not None
    assert not other.matches
    assert "has 360 pieces, but the model's embedding has 24 rows" in str(other.problem)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    broken = inspect(folder).tokenizer
    assert broken is not None
    assert (broken.kind, broken.pieces, broken.matches) == (None, None, False)
    assert "is not a SentencePiece model" in str(broken.problem)


def test_keys_that_can_be_computed_are_listed_apart(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")
    assert inspect(folder).ignored == ()
    edit(folder, 0, **{"rope.freqs": torch.ones(4)})
    assert inspect(folder).ignored == ("rope.freqs",)


def test_looking_at_headers_needs_no_torch(make_folder: MakeFolder) -> None:
    code = (
        "import sys; from model.checkpoint.opening import open_checkpoint; "
        "from model.inspection.headers import inspect_checkpoint; "
        "import json; from dataclasses import asdict; "
        "print(json.dumps([asdict(inspect_checkpoint(open_checkpoint(sys.argv[1]))), 'torch' in sys.modules]))"
    )
    folder = make_folder("ckpt", mp=2)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=True, text=True)
    report, loaded = json.loads(done.stdout)
    assert not loaded
    assert (report["dim"], report["mp"], len(report["files"])) == (32, 2, 2)
