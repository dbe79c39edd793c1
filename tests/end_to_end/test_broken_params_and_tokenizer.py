"""Faults of params.json and the tokenizer's file (FAULTS A33 to A51), through the real command."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import SHARD, Sizes, edit_params, train_tokenizer, write_checkpoint
from tests.end_to_end.command import CopyOf, assert_done, assert_refused, complete, run, snapshot
from tests.end_to_end.faults import Fault, Table

PARAMS, TOKENIZER, FIRST = "params.json", "tokenizer.model", SHARD.format(0)
TABLE = Table()
add = TABLE.add


@add("A33_params_missing", PARAMS, "does not exist")
def remove_params(folder: Path) -> None:
    (folder / PARAMS).unlink()


@add("A34_invalid_json", "params.json:2:10", "not valid JSON")
def invalid_json(folder: Path) -> None:
    (folder / PARAMS).write_text('{"dim": 32,\n "heads":}')


@add("A34_web_page", PARAMS, "web page", "download it again")
def params_are_a_web_page(folder: Path) -> None:
    (folder / PARAMS).write_text("<!DOCTYPE html><html><body>404</body></html>")


@add("A34_git_lfs_pointer", PARAMS, "Git LFS pointer", "git lfs pull")
def params_are_a_pointer(folder: Path) -> None:
    (folder / PARAMS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 100\n")


@add("A34_not_utf8", PARAMS, "not UTF-8", "byte 2")
def params_not_utf8(folder: Path) -> None:
    (folder / PARAMS).write_bytes(b'{"\xff": 3}')


@add("A34_empty", PARAMS, "not valid JSON")
def params_empty(folder: Path) -> None:
    (folder / PARAMS).write_text("")


@add("A34_nested_without_end", PARAMS, "nested")
def params_nested(folder: Path) -> None:
    (folder / PARAMS).write_text("[" * 100_000)


@add("A33_params_is_a_folder", PARAMS, ("Is a directory", "is a folder"))
def params_is_a_folder(folder: Path) -> None:
    (folder / PARAMS).unlink()
    (folder / PARAMS).mkdir()


@add("A33_params_is_a_pipe", PARAMS, "not a regular file")
def params_is_a_pipe(folder: Path) -> None:
    (folder / PARAMS).unlink()
    os.mkfifo(folder / PARAMS)


@add("A37_a_list", PARAMS, "holds a list", "object")
def params_list(folder: Path) -> None:
    (folder / PARAMS).write_text("[1, 2]")


def _params_fault(name: str, *says: str | tuple[str, ...], mp: int = 1, **changes: object) -> None:
    """A fault that is only a changed value."""

    @add(name, *says, mp=mp)
    def change(folder: Path) -> None:
        edit_params(folder, **changes)


_params_fault("A35_unknown_key", PARAMS, "unknown key 'n_head'", "did you mean 'n_heads'", n_head=4)
_params_fault("A35_unknown_key_like_none", PARAMS, "unknown key 'zzz'", "n_layers", zzz=4)
_params_fault("A38_dim_negative", PARAMS, "dim is -64", "whole number", "1 to", dim=-64)
_params_fault("A38_dim_zero", PARAMS, "dim is 0", "whole number", "1 to", dim=0)
_params_fault("A39_no_heads", PARAMS, "n_heads is 0", "whole number", "1 to", n_heads=0)
_params_fault("A40_dim_a_text", PARAMS, 'dim is "64"', "whole number", dim="64")
_params_fault("A40_dim_a_boolean", PARAMS, "dim is true", "whole number", dim=True)
_params_fault("A40_dim_a_fraction", PARAMS, "dim is 32.5", "whole number", dim=32.5)
_params_fault("A40_dim_null", PARAMS, "dim is null", "whole number", dim=None)
_params_fault("A41_too_few_layers", PARAMS, "n_layers is 1", FIRST, "2 layers", n_layers=1)
_params_fault("A42_too_many_layers", PARAMS, "n_layers is 5", FIRST, "2 layers", n_layers=5)
_params_fault("A43_7_heads", PARAMS, "dim=32", "n_heads=7", "even", n_heads=7)
_params_fault("A43_odd_numbers_a_head", PARAMS, "dim=32", "n_heads=32", "even", n_heads=32, n_kv_heads=32)
_params_fault("A43_1_head_for_2_ranks", PARAMS, "1 head", "2 ranks", "MP", mp=2, n_heads=1, n_kv_heads=1)
_params_fault("A44_wrong_kv_heads", FIRST, "wk", "n_kv_heads=4", "[16, 32]", "[32, 32]", n_kv_heads=4)
_params_fault("A44_uneven_kv_heads", PARAMS, "n_kv_heads=3", "n_heads=4", n_kv_heads=3)
_params_fault("A45_dim_10_million", PARAMS, "dim is 10000000", "1 to", dim=10**7)
_params_fault("A45_dim_a_million", FIRST, "1048576", "[300, 32]", dim=2**20)
_params_fault("A45_10_million_layers", PARAMS, "n_layers is 10000000", "1 to", n_layers=10**7)
_params_fault("A45_vocabulary_of_16_million", PARAMS, "vocab_size is 16000000", "300", vocab_size=16 * 10**6)
_params_fault("A46_max_seq_len_of_a_wrong_type", PARAMS, 'max_seq_len is "long"', "whole number", max_seq_len="long")
_params_fault("A47_norm_eps_negative", PARAMS, "norm_eps is -1e-05", "wanted a finite number", norm_eps=-1e-5)
_params_fault("A47_norm_eps_nan", PARAMS, "norm_eps is NaN", "wanted a finite number", norm_eps=float("nan"))
_params_fault("A47_norm_eps_infinity", PARAMS, "norm_eps is Infinity", "wanted a finite number", norm_eps=float("inf"))
_params_fault("A47_rope_theta_infinity", PARAMS, "rope_theta is -Infinity", "finite", rope_theta=float("-inf"))
_params_fault("A48_other_vocabulary", PARAMS, "vocab_size is 1024", "300", (FIRST, TOKENIZER), vocab_size=1024)
_params_fault("A48_no_vocabulary", PARAMS, "vocab_size is 0", "-1", vocab_size=0)


@add("A33_key_missing", PARAMS, "'n_layers' is missing", "whole number")
def key_missing(folder: Path) -> None:
    params = json.loads((folder / PARAMS).read_text())
    del params["n_layers"]
    (folder / PARAMS).write_text(json.dumps(params))


@add("A49_tokenizer_missing", "ckpt", TOKENIZER, "--tokenizer_path")
def remove_tokenizer(folder: Path) -> None:
    (folder / TOKENIZER).unlink()


@add("A49_tokenizer_path_leads_nowhere", "no/such.model", "does not exist", flags=("--tokenizer_path", "no/such.model"))
def change_nothing(_folder: Path) -> None:
    pass


@add("A50_tokenizer_empty", TOKENIZER, "is empty", "download it again")
def tokenizer_empty(folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(b"")


@add("A50_tokenizer_junk", TOKENIZER, "is not a SentencePiece model", "download it again")
def tokenizer_junk(folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(bytes(range(256)) * 20)


@add("A50_tokenizer_half", TOKENIZER, "is not a SentencePiece model", "download it again")
def tokenizer_half(folder: Path) -> None:
    os.truncate(folder / TOKENIZER, (folder / TOKENIZER).stat().st_size // 2)


@add("A50_tokenizer_web_page", TOKENIZER, "web page", "download it again")
def tokenizer_web_page(folder: Path) -> None:
    (folder / TOKENIZER).write_text("<html></html>")


@add("A50_tokenizer_git_lfs_pointer", TOKENIZER, "Git LFS pointer", "git lfs pull")
def tokenizer_pointer(folder: Path) -> None:
    (folder / TOKENIZER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:9e55\nsize 499723\n")


@add("A50_tokenizer_is_a_folder", TOKENIZER, "is a folder")
def tokenizer_is_a_folder(folder: Path) -> None:
    (folder / TOKENIZER).unlink()
    (folder / TOKENIZER).mkdir()


@add("A51_tokenizer_of_another_size", TOKENIZER, "304", "300", "--tokenizer_path")
@add("A51_tokenizer_of_another_size_on_two_ranks", TOKENIZER, "304", "300", "--tokenizer_path", mp=2)
def other_tokenizer(folder: Path) -> None:
    train_tokenizer(folder / TOKENIZER, 304)


@pytest.mark.parametrize("fault", TABLE.each())
def test_broken_params_or_tokenizer_are_refused_with_one_message_and_left_as_they_are(
    fault: Fault, copy_of: CopyOf, case: Path
) -> None:
    folder = copy_of(fault.mp)
    fault.break_it(folder)
    before = snapshot(case)
    outcome = run(complete("ckpt", *fault.all_flags), case)
    assert snapshot(case) == before
    assert_refused(outcome, fault.says)
    # Nothing was allocated for sizes that the files do not have (what this process holds counts up to exec).
    assert outcome.peak_bytes < 500 * 2**20


def test_A36_the_keys_of_llama_3_are_read(copy_of: CopyOf, case: Path) -> None:
    folder = copy_of(1)
    edit_params(folder, rope_theta=500000.0, use_scaled_rope=True, ffn_dim_multiplier=1.1)
    outcome = run(complete(), case)
    assert_done(outcome, ["base from params.json", "scaled by 8"])


def test_A46_a_flag_decides_over_max_seq_len_in_params(copy_of: CopyOf, case: Path) -> None:
    edit_params(copy_of(1), max_seq_len=4, max_batch_size=1)
    prompts = '["the old boat lay on the sand", "a small grey cat"]'
    outcome = run(complete("ckpt", "--json", prompts=prompts), case)
    assert_done(outcome)
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert [len(answer["tokens"]) for answer in answers] == [2, 2]
    assert len(answers[0]["prompt_tokens"]) > 4


def test_A49_the_tokenizer_beside_the_folder_is_found(copy_of: CopyOf, case: Path) -> None:
    shutil.move(copy_of(1) / TOKENIZER, case / TOKENIZER)
    before = snapshot(case)
    assert_done(run(complete(), case))
    assert snapshot(case) == before


def test_A43_fewer_kv_heads_than_the_shards_hold_are_refused(case: Path, tokenizer: bytes) -> None:
    write_checkpoint(case / "ckpt", 4, Sizes(n_kv_heads=4), tokenizer=tokenizer)
    edit_params(case / "ckpt", n_kv_heads=2)
    outcome = run(complete("ckpt", "--nproc_per_node", "4"), case)
    assert_refused(
        outcome, [("params.json", "ckpt"), "n_kv_heads is 2", "4 shards", "attention.wk", "different models"]
    )
