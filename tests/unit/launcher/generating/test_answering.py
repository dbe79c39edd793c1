"""Runs that were interrupted anywhere give the answers of one that was not, whatever is asked of them."""

import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from launcher.console import ProgressLine
from launcher.generating.answering import answer_requests
from launcher.generating.preflight import preflight
from launcher.settings.flags import run_options
from model.llama import Llama
from parallel import World
from parallel.environment import Environment, Placement

DEMO = str(Path(__file__).resolve().parents[4] / "configs" / "demo")
WORDS = ["the", "old", "boat", "lay", "on", "sand", "and", "waited", "for", "a", "small", "grey", "cat", "by", "doors"]
COUNT, BAD = 40, (0, 17, 18, 39)
SETTINGS: dict[str, dict[str, str]] = {
    "drawn_in_bfloat16_with_logprobs": {"temperature": "0.8", "logprobs": "true", "dtype": "bfloat16"},
    "several_answers_and_stop_strings": {
        "temperature": "1",
        "num_return_sequences": "3",
        "stop": '["the", "."]',
        "top_logprobs": "2",
    },
    "beams": {"num_beams": "2", "num_return_sequences": "2", "length_penalty": "0.5"},
    "greedy_with_echo": {"temperature": "0", "echo": "true", "logprobs": "true"},
    "contrastive": {"penalty_alpha": "0.6", "top_k": "4", "repetition_penalty": "1.2"},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy processors wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompts(folder: Path) -> Path:
    """Lines of mixed lengths, of which some are bad."""
    draw, path = random.Random(3), folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": " ".join(draw.choices(WORDS, k=draw.choice([1, 4, 12, 20])))}) for _ in range(COUNT)]
    for index in BAD:
        lines[index] = "no JSON" if index % 2 else json.dumps({"prompt": "boat " * 100})
    path.write_text("\n".join(lines))
    return path


def answer(folder: Path, flags: dict[str, str], while_loading: Callable[[], object] = lambda: None) -> int:
    """Answer the prompts with the demo model; how often it was loaded."""
    asked = {"ckpt_dir": DEMO, "max_seq_len": "64", "max_gen_len": "6", "bad_lines": "skip"}
    options = run_options("complete", {**asked, "prompts": f"@{prompts(folder)}", **flags})
    world = World(Environment(), Placement(device="cpu", backend=None, threads=1, reason=""), None)
    loaded: list[Llama] = []

    def load() -> Llama:
        while_loading()
        model, section = options.model, options.generation
        loaded.append(
            Llama.load(ready.found, world, model.max_seq_len, model.max_batch_size, section.seed, dtype=model.dtype)
        )
        return loaded[-1]

    ready = preflight(options, 1)
    answer_requests(world, options, ready, load)
    return len(loaded)


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS)
def test_a_run_that_was_interrupted_anywhere_ends_with_the_same_bytes(flags: dict[str, str], tmp_path: Path) -> None:
    whole, cut, kept = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl", tmp_path / "settings"
    to_whole, to_cut = ({**flags, "output": str(path)} for path in (whole, cut))
    assert answer(tmp_path, to_whole, lambda: shutil.copy(f"{whole}.run", kept)) == 1
    assert not Path(f"{whole}.run").exists()
    data = whole.read_bytes()
    answers = [json.loads(line) for line in data.splitlines()]
    copies = int(flags.get("num_return_sequences", "1"))
    assert [answer["index"] for answer in answers] == [
        index for index in range(COUNT) for _ in range(1 if index in BAD else copies)
    ]
    assert tuple(answer["index"] for answer in answers if "error" in answer) == BAD
    for size in random.Random(5).sample(range(len(data)), 2):
        cut.write_bytes(data[:size])
        shutil.copy(kept, f"{cut}.run")
        answer(tmp_path, {**to_cut, "resume": "true"})
        assert cut.read_bytes() == data
        assert not Path(f"{cut}.run").exists()


def test_nothing_is_loaded_where_nothing_is_left_to_be_answered(tmp_path: Path) -> None:
    flags = {"max_gen_len": "1", "output": str(tmp_path / "out.jsonl")}
    assert answer(tmp_path, flags) == 1
    data = (tmp_path / "out.jsonl").read_bytes()
    assert answer(tmp_path, {**flags, "resume": "true"}) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == data


def test_a_list_of_nothing_but_bad_lines_needs_no_model(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert answer(tmp_path, {"prompts": json.dumps(["a\udc00", "b\udc00"]), "output": str(path)}) == 0
    assert [list(json.loads(line)) for line in path.read_text().splitlines()] == [["index", "prompt", "error"]] * 2


@pytest.mark.parametrize("flags", [{}, {"echo": "true", "stop": '["the", "a b"]', "max_gen_len": "20"}])
def test_streamed_text_is_the_text_of_whole_answers(
    flags: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_float32 = {**flags, "dtype": "float32", "temperature": "0.8"}
    answer(tmp_path, in_float32)
    whole = capfd.readouterr().out
    assert whole.strip() != ""
    answer(tmp_path, {**in_float32, "stream": "true"})
    assert capfd.readouterr().out == whole


def test_progress_counts_what_this_run_does_and_says_its_tokens_a_second_on_stderr(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ProgressLine, "PATIENCE_S", 0.0)
    monkeypatch.setattr(logging.getLogger("shardrun"), "propagate", True)
    caplog.set_level(logging.INFO, "shardrun")
    path, kept = tmp_path / "out.jsonl", tmp_path / "settings"
    flags = {"output": str(path), "max_gen_len": "2", "eos_ids": "[]"}
    for left, resume in ((COUNT - len(BAD), "false"), (COUNT - len(BAD) - 9, "true")):
        answer(tmp_path, {**flags, "resume": resume}, lambda: shutil.copy(f"{path}.run", kept))
        captured = capfd.readouterr()
        assert captured.out == ""
        said = rf"shardrun: generating: \d+ of {left} prompts \(\d+ %\), \S+ prompts/s, \d+ tokens/s, \d+ s left"
        assert re.search(said, captured.err), captured.err
        assert re.search(rf"answered {left} prompts with {2 * left} tokens in \S+ s: \d+ tokens/s", caplog.text)
        # As a run leaves it that was killed behind its tenth line, of which one is bad.
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
        shutil.copy(kept, f"{path}.run")
