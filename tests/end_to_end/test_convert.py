"""The real `convert`, and `complete` on what it wrote and on a Hugging Face folder as it is."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.checkpoints import TINY, VOCABULARY, Sizes, cut_short, flip_bit, whole_weights, write_checkpoint
from tests.end_to_end.command import (
    WHILE_LOADING_S,
    CopyOf,
    Running,
    Said,
    assert_done,
    assert_refused,
    complete,
    run,
    snapshot,
)
from tests.hugging_face import edit_config, meta_weights, same_bits, save_llama

SINGLE = "model.safetensors"
# Writing it takes long enough to be met in the middle.
LARGE = Sizes(dim=768, n_layers=4)
KILLS = 20


@pytest.fixture(scope="session")
def hugging_face(
    healthy: Callable[[int, Sizes], Path], tokenizer: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The healthy Meta folder as transformers would have saved it; never to be written to."""
    folder = tmp_path_factory.mktemp("hugging-face") / "hf"
    model = save_llama(
        folder,
        vocab_size=VOCABULARY,
        hidden_size=TINY.dim,
        intermediate_size=TINY.ffn_dim,
        num_attention_heads=TINY.n_heads,
        num_key_value_heads=TINY.n_kv_heads,
        num_hidden_layers=TINY.n_layers,
    )
    weights = whole_weights(TINY)
    names = {next(iter(meta_weights({key: tensor}, 1, 1))): key for key, tensor in model.state_dict().items()}
    state = {names[name]: tensor for name, tensor in weights.items()}
    for layer in range(TINY.n_layers):
        for part, heads in (("q_proj", TINY.n_heads), ("k_proj", TINY.n_kv_heads)):
            key = f"model.layers.{layer}.self_attn.{part}.weight"
            # Neighbours of a head come apart: the first ones to its first half, the second ones to its second.
            pairs = state[key].view(heads, -1, 2, TINY.dim)
            state[key] = torch.cat([pairs[:, :, 0], pairs[:, :, 1]], 1).reshape(state[key].shape)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


@pytest.mark.parametrize("mp", [1, 2])
def test_a_hugging_face_folder_runs_as_it_is_with_the_same_text(
    mp: int, hugging_face: Path, healthy_answer: str, case: Path
) -> None:
    before = snapshot(hugging_face)
    ranks = ("--nproc_per_node", str(mp)) if mp > 1 else ()
    outcome = run(complete(hugging_face, "--json", *ranks), case)
    assert_done(outcome)
    answer, wanted = json.loads(outcome.out), json.loads(healthy_answer)
    assert answer == wanted
    assert snapshot(hugging_face) == before


@pytest.mark.parametrize("mp", [1, 2, 3])
def test_meta_to_hugging_face_and_back_runs_with_the_same_text(
    mp: int, copy_of: CopyOf, healthy_answer: str, case: Path
) -> None:
    copy_of(1)
    assert_done(run(["convert", "ckpt", "hf", "--to", "hf"], case), ["wrote hf: 1 safetensors file and config.json"])
    outcome = run(["convert", "hf", "meta", "--to", "meta", "--mp", str(mp)], case)
    assert_done(outcome, [f"wrote meta: {mp} shard"])
    assert len(list((case / "meta").glob("consolidated.*.pth"))) == mp
    for folder in ("hf", "meta"):
        outcome = run(complete(folder, "--json"), case)
        assert_done(outcome)
        assert outcome.out == healthy_answer


def test_what_convert_writes_opens_in_transformers(copy_of: CopyOf, tokenizer: bytes, case: Path) -> None:
    copy_of(2)
    (case / "ckpt" / "LICENSE").write_text("terms")
    assert_done(run(["convert", "ckpt", "hf", "--to", "hf"], case))
    assert (case / "hf" / "tokenizer.model").read_bytes() == tokenizer
    assert (case / "hf" / "LICENSE").read_text() == "terms"
    model = AutoModelForCausalLM.from_pretrained(case / "hf")
    wanted = whole_weights(TINY)
    found = meta_weights(dict(model.state_dict()), TINY.n_heads, TINY.n_kv_heads)
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in wanted.items())


def test_the_trained_demo_model_speaks_in_transformers(case: Path) -> None:
    demo = Path(__file__).resolve().parents[2] / "configs" / "demo"
    flags = ("--max_seq_len", "64", "--max_gen_len", "16")
    outcome = run(complete(demo, "--json", *flags, prompts='["The "]'), case)
    assert_done(outcome)
    answer = json.loads(outcome.out)
    assert_done(run(["convert", str(demo), "hf", "--to", "hf"], case))
    tokenizer = AutoTokenizer.from_pretrained(case / "hf")
    tokens = tokenizer("The ").input_ids
    assert tokens == answer["prompt_tokens"]
    model = AutoModelForCausalLM.from_pretrained(case / "hf", dtype=torch.float32)
    greedy = model.generate(torch.tensor([tokens]), max_new_tokens=16, do_sample=False)[0, len(tokens) :]
    # Up to the end token, which `complete` keeps to itself.
    assert greedy.tolist()[: len(answer["tokens"])] == answer["tokens"]


def _nothing(_case: Path) -> None:
    pass


def _bit_flip(case: Path) -> None:
    flip_bit(case / "ckpt" / "consolidated.00.pth", 3)


def _cut_short(case: Path) -> None:
    cut_short(case / "hf" / SINGLE, 0.5)


def _other_architecture(case: Path) -> None:
    edit_config(case / "hf", model_type="mistral")


def _no_source(case: Path) -> None:
    shutil.rmtree(case / "ckpt")


def _no_tokenizer(case: Path) -> None:
    (case / "ckpt" / "tokenizer.model").write_bytes(b"\x0a\x00junk")


FAULTS: dict[str, tuple[Callable[[Path], None], str, tuple[Said, ...]]] = {
    "no_layout": (_nothing, "ckpt dst", ("--to is missing", "meta", "hf")),
    "another_layout": (_nothing, "ckpt dst --to onnx", ("--to is 'onnx'", "meta or hf")),
    "mp_for_hugging_face": (_nothing, "ckpt dst --to hf --mp 2", ("--mp is 2", "--to meta")),
    "cut_for_hugging_face": (_nothing, "ckpt dst --to hf --embedding_dim 0", ("--embedding_dim is 0", "--to meta")),
    "one_folder": (_nothing, "ckpt --to hf", ("convert wants two folders", "1")),
    "an_unknown_flag": (_nothing, "ckpt dst --to hf --nosuch 1", ("--nosuch is not a flag of convert",)),
    "dst_is_there": (_nothing, "ckpt hf --to hf", ("hf", "is there already")),
    "dst_is_src": (_nothing, "ckpt ckpt --to hf", ("ckpt", "is there already")),
    "parent_of_dst_missing": (_nothing, "ckpt no/dst --to hf", ("no", "does not exist")),
    "src_missing": (_no_source, "ckpt dst --to hf", ("ckpt", "does not exist")),
    "src_with_a_flipped_bit": (_bit_flip, "ckpt dst --to hf", ("consolidated.00.pth", "CRC-32")),
    "src_cut_short": (_cut_short, "hf dst --to meta", (SINGLE, "cut short", "download it again")),
    "another_architecture": (_other_architecture, "hf dst --to meta", ("config.json", "model_type", "mistral")),
    "too_many_ranks": (_nothing, "hf dst --to meta --mp 5", ("4 heads", "5 ranks", "4 or fewer")),
    "a_damaged_tokenizer": (_no_tokenizer, "ckpt dst --to hf", ("tokenizer.model", "SentencePiece")),
}


@pytest.mark.parametrize(("prepare", "words", "says"), FAULTS.values(), ids=FAULTS)
def test_a_convert_that_cannot_be_done_leaves_everything_as_it_was(
    prepare: Callable[[Path], None],
    words: str,
    says: tuple[Said, ...],
    copy_of: CopyOf,
    hugging_face: Path,
    case: Path,
) -> None:
    copy_of(1)
    shutil.copytree(hugging_face, case / "hf")
    prepare(case)
    before = snapshot(case)
    outcome = run(["convert", *words.split()], case)
    assert snapshot(case) == before
    assert_refused(outcome, says, WHILE_LOADING_S, alone=True)


def test_convert_under_torchrun_is_refused(copy_of: CopyOf, case: Path) -> None:
    copy_of(1)
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    outcome = run(["convert", "ckpt", "dst", "--to", "hf"], case, env=env)
    assert_refused(outcome, ["one process", "without torchrun"])


@pytest.mark.drill
@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_convert_that_is_killed_at_any_moment_leaves_a_whole_folder_or_none(to: str, case: Path) -> None:
    write_checkpoint(case / "ckpt", 1, LARGE)
    source = "ckpt"
    if to == "meta":
        assert_done(run(["convert", "ckpt", "hf", "--to", "hf"], case))
        source = "hf"
    words = ["convert", source, "dst", "--to", to]
    before = snapshot(case)
    started = time.monotonic()
    assert_done(run(words, case))
    seconds = time.monotonic() - started
    whole = {path: digest.split()[0] for path, digest in snapshot(case / "dst").items()}
    shutil.rmtree(case / "dst")
    rng = random.Random(11)
    met = {"none": 0, "hidden": 0, "whole": 0}
    for _ in range(KILLS):
        with Running(words, case) as running:
            time.sleep(rng.uniform(0.2, 1.05) * seconds)
            # One that has ended already is still there to be waited for.
            os.kill(running.process.pid, signal.SIGKILL)
            outcome = running.end()
        assert outcome.left == []
        after = snapshot(case)
        assert {path: after.get(path) for path in before} == before
        hidden = list(case.glob(".dst.partial-*"))
        if (case / "dst").exists():
            found = snapshot(case / "dst")
            assert {path: digest.split()[0] for path, digest in found.items()} == whole
            shutil.rmtree(case / "dst")
            met["whole"] += 1
        else:
            met["hidden" if hidden else "none"] += 1
    assert_done(run(words, case))
    assert not list(case.glob(".dst.partial-*"))
    assert {path: digest.split()[0] for path, digest in snapshot(case / "dst").items()} == whole
    # Otherwise nothing was met in the middle, and nothing was shown.
    assert met["hidden"] >= 3, met
