"""`infill` by the real command: the answer, the whole text, any number of ranks, and models that cannot."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.checkpoints import SENTENCES, VOCABULARY, write_checkpoint
from tests.end_to_end.command import assert_done, assert_refused, run

ROOT = Path(__file__).resolve().parents[2]
MARKS = [f"\u2581<{name}>" for name in ("PRE", "MID", "SUF", "EOT")]
PROMPTS = ["the old<FILL_ME> the sea", "a boat\n<FILL_ME>"]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has Code Llama's marks."""
    folder = tmp_path_factory.mktemp("code") / "ckpt"
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        user_defined_symbols=MARKS,
        minloglevel=2,
    )
    return write_checkpoint(folder, 1, tokenizer=written.getvalue())


def infill(folder: Path, here: Path, *flags: str) -> list[dict[str, Any]]:
    words = ["infill", "--ckpt_dir", str(folder), "--prompts", json.dumps(PROMPTS), "--temperature", "0"]
    outcome = run([*words, "--max_gen_len", "6", "--max_seq_len", "64", "--json", *flags], here)
    assert_done(outcome)
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_the_middle_is_put_between_prefix_and_suffix_at_any_mp(code: Path, tmp_path: Path) -> None:
    alone = infill(code, tmp_path)
    processor = sentencepiece.SentencePieceProcessor(str(code / "tokenizer.model"))
    pre, mid, suf, _ = [processor.piece_to_id(mark) for mark in MARKS]
    for prompt, answer in zip(PROMPTS, alone, strict=True):
        prefix, suffix = prompt.split("<FILL_ME>")
        assert answer["full_text"] == prefix + answer["generation"] + suffix
        ids = answer["prompt_tokens"]
        assert ids[:2] == [processor.bos_id(), pre]
        assert ids[2 : ids.index(suf)] == processor.encode(prefix)
        assert ids[-1] == mid
    assert infill(code, tmp_path, "--nproc_per_node", "2") == alone
    ids = infill(code, tmp_path, "--suffix_first")[0]["prompt_tokens"]
    assert ids[1:3] == [pre, suf]
    assert ids[ids.index(mid) + 1 :] == processor.encode("the old")


def test_a_model_without_the_marks_is_refused_with_the_reason(tmp_path: Path) -> None:
    words = ["infill", "--ckpt_dir", str(ROOT / "configs" / "demo"), "--prompts", json.dumps(PROMPTS)]
    assert_refused(run(words, tmp_path), ["configs/demo/tokenizer.model", "PRE"])


def test_a_prompt_without_a_place_to_fill_is_named(code: Path, tmp_path: Path) -> None:
    words = ["infill", "--ckpt_dir", str(code), "--prompts", '["a<FILL_ME>b", "no place"]']
    assert_refused(run(words, tmp_path), ["prompt 1", "<FILL_ME>"])
