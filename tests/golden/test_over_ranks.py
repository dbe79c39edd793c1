"""The real command over 2 and 4 ranks: the tokens and log-probabilities of the uncut model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.golden.conftest import END_OF_STORY, build, cases_of, json_lines, reference_of, run, torchrun
from tests.reference import logprobs

Cut = Callable[[str, int], Path]
# As in one process: float32 sums in another order. Partial sums of ranks are one more order.
NEAR = 1e-4


def greedy_words(name: str, folder: Path, tokens: int) -> list[object]:
    cases = cases_of(name)
    return [
        *("complete", "--ckpt_dir", folder, "--prompts", json.dumps([case.prompt for case in cases])),
        *("--max_gen_len", tokens, "--eos_ids", f"[{END_OF_STORY}]"),
        *("--temperature", 0, "--dtype", "float32", "--device", "cpu", "--json"),
    ]


def check_as_recorded(name: str, answers: list[dict[str, Any]], tokens: int) -> None:
    for index, (case, answer) in enumerate(zip(cases_of(name), answers, strict=True)):
        assert answer["index"] == index
        assert answer["prompt"] == case.prompt
        assert answer["prompt_tokens"] == case.prompt_tokens
        assert answer["tokens"] == case.tokens[:tokens]
        assert case.text.startswith(answer["generation"])
        if tokens >= len(case.tokens):
            assert answer["generation"] == case.text
            assert answer["finish_reason"] == case.finish_reason


# All that was recorded at 2 ranks; fewer at 4, which wait for each other on a small machine.
@pytest.mark.parametrize(
    ("name", "mp", "tokens"), [("stories260K", 2, 200), ("stories260K", 4, 50), ("stories15M", 2, 160)]
)
def test_greedy_tokens_and_logprobs_over_ranks_are_those_of_the_uncut_model(
    cut: Cut, name: str, mp: int, tokens: int
) -> None:
    words = greedy_words(name, cut(name, mp), tokens)
    answers = json_lines(run("-m", "launcher", *words, "--nproc_per_node", mp, "--logprobs", "--echo"))
    check_as_recorded(name, answers, tokens)
    for answer in answers:
        known = answer["logprobs"]
        assert known[0] is None
        whole = [*answer["prompt_tokens"], *answer["tokens"]]
        assert known[1:] == pytest.approx(logprobs(reference_of(name), whole), abs=NEAR)


def test_greedy_tokens_under_torchrun_are_those_of_the_uncut_model(cut: Cut) -> None:
    words = greedy_words("stories15M", cut("stories15M", 2), 50)
    answers = json_lines(torchrun(2, "-m", "launcher", *words, "--logprobs"))
    check_as_recorded("stories15M", answers, 50)
    for answer in answers:
        whole = logprobs(reference_of("stories15M"), [*answer["prompt_tokens"], *answer["tokens"]])
        assert answer["logprobs"] == pytest.approx(whole[len(answer["prompt_tokens"]) - 1 :], abs=NEAR)


def test_the_same_seed_draws_the_same_tokens_at_any_mp_and_batch_size(cut: Cut) -> None:
    prompts = ["", "Once upon a time", "The dog", "Lily saw a", "One day, Tom and his dog"]
    common = ["--prompts", json.dumps(prompts), "--max_gen_len", 40, "--temperature", 0.9, "--top_p", 0.95]
    common += ["--seed", 7, "--dtype", "float32", "--device", "cpu", "--json"]

    def tokens(mp: int, batch_size: int) -> list[list[int]]:
        folder = cut("stories260K", mp)
        flags = ["--ckpt_dir", folder, "--nproc_per_node", mp, "--max_batch_size", batch_size]
        return [answer["tokens"] for answer in json_lines(run("-m", "launcher", "complete", *flags, *common))]

    llama = build("stories260K", seed=7)
    ids = [llama.encode_prompt(prompt, index) for index, prompt in enumerate(prompts)]
    whole, _ = llama.generate(ids, 40, 0.9, 0.95)
    assert all(len(row) > 20 for row in whole)
    assert len({tuple(row[:20]) for row in whole}) == 5
    assert tokens(1, 1) == whole
    assert tokens(2, 8) == whole


def test_the_text_example_runs_under_torchrun_and_prints_once(cut: Cut) -> None:
    shown = torchrun(2, "examples/text_completion.py", "--ckpt_dir", cut("stories15M", 2), "--temperature", 0)
    blocks = shown.split("=" * 40)[:-1]
    assert len(blocks) == 3
    prompt, answer = blocks[1].strip().split("\n> ")
    assert prompt == "Once upon a time, a small fox"
    # A model of children's stories; 64 tokens are some 200 letters.
    assert len(answer) > 100


def test_the_chat_example_runs_under_torchrun_and_prints_once(cut: Cut) -> None:
    folder = cut("stories15M", 2)
    shown = torchrun(2, "examples/chat_completion.py", "--ckpt_dir", folder, "--temperature", 0, "--max_gen_len", 16)
    blocks = shown.split("=" * 40)[:-1]
    assert [block.count("assistant: ") for block in blocks] == [1, 1, 2]
    assert (
        blocks[1].lstrip().startswith("system: Answer in one short sentence.\nuser: Why is the sea salty?\nassistant: ")
    )
