"""Answers as lines of JSON and as text."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.generating.answers import Answer, beginnings, blank_answers
from launcher.generating.preflight import Ready, preflight
from launcher.settings.flags import run_options
from launcher.settings.options import RunOptions
from model.generation.settings import Event

DEMO = str(Path(__file__).resolve().parents[4] / "configs" / "demo")
FIELDS = ["index", "prompt", "generation", "prompt_tokens", "tokens", "logprobs", "finish_reason"]


def asked(*prompts: str, command: str = "complete", **flags: str) -> tuple[RunOptions, Ready]:
    flags = {"ckpt_dir": DEMO, "max_seq_len": "32", **({"prompts": json.dumps(prompts)} if prompts else {}), **flags}
    options = run_options(command, flags)
    return options, preflight(options, 1)


def answer_of(ready: Ready, events: Sequence[Event], index: int = 0, sequence: int = 0) -> Answer:
    answer = Answer(ready.requests[index], sequence)
    for event in events:
        answer.take(event)
    return answer


def ids(ready: Ready, text: str) -> list[int]:
    return ready.tokenizer.encode(text, bos=False, eos=False)


def said(ready: Ready, text: str, ended: bool = True) -> list[Event]:
    """The events of an answer of the tokens of `text`, and then the end token unless it was not `ended`."""
    found = [Event(0, token, -0.5, None, ((token, -0.5), (2, -1.5))) for token in ids(ready, text)]
    return (
        [*found, Event(0, None, None, "stop")] if ended else [*found[:-1], replace(found[-1], finish_reason="length")]
    )


def test_an_answer_has_the_fields_of_the_interface_in_their_order() -> None:
    options, ready = asked("a cat", "日本")
    found = json.loads(answer_of(ready, said(ready, "sat down"), 1).as_json(ready, options.generation))
    assert list(found) == FIELDS
    assert found == {
        "index": 1,
        "prompt": "日本",
        "generation": "sat down",
        "prompt_tokens": ready.requests[1].tokens,
        "tokens": ids(ready, "sat down"),
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_logprobs_stand_one_for_each_token_and_with_echo_the_prompts_before_them() -> None:
    options, ready = asked("a cat", logprobs="true", top_logprobs="2", echo="true")
    answer = answer_of(ready, said(ready, "sat down", ended=False))
    answer.prompt_logprobs = [-1.0] * (ready.requests[0].length - 1)
    found = json.loads(answer.as_json(ready, options.generation))
    assert found["logprobs"] == [None, *answer.prompt_logprobs, *([-0.5] * len(found["tokens"]))]
    assert len(found["logprobs"]) == len(found["prompt_tokens"]) + len(found["tokens"])
    assert found["top_logprobs"] == [{str(token): -0.5, "2": -1.5} for token in found["tokens"]]
    assert found["finish_reason"] == "length"


def test_a_stop_string_is_cut_from_the_text_and_its_tokens_are_kept() -> None:
    options, ready = asked("a cat", stop='["down"]')
    found = json.loads(answer_of(ready, said(ready, "sat down")).as_json(ready, options.generation))
    assert (found["generation"], found["tokens"]) == ("sat ", ids(ready, "sat down"))


def test_echo_puts_the_prompt_before_the_text() -> None:
    options, ready = asked("a cat", echo="true")
    answer = answer_of(ready, said(ready, "sat down"))
    assert answer.as_text(ready, options.generation) == "a cat sat down"


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("complete", {"prompts": '["a \\"cat\\"", "", "日本"]'}),
        ("complete", {"prompts": '["a cat"]', "num_return_sequences": "3", "max_batch_size": "4"}),
        ("complete", {"prompts": '["a\\udc00"]', "bad_lines": "skip"}),
        ("complete", {"prompts": '["a\\udc00", "b"]', "bad_lines": "skip", "num_return_sequences": "2"}),
        ("chat", {"dialogs": '[[{"role": "user", "content": "Hello"}], [{"role": "user", "content": "[INST]"}]]'}),
        ("chat", {"dialogs": '[[{"role": "user", "content": "a", "x": "\\ud800"}]]', "num_return_sequences": "2"}),
        ("chat", {"dialogs": '[[{"role": "user"}]]', "bad_lines": "skip"}),
    ],
)
def test_the_beginnings_of_lines_are_what_the_lines_begin_with(command: str, flags: dict[str, str]) -> None:
    options, ready = asked(command=command, **flags)
    copies = options.generation.num_return_sequences
    for request in ready.requests:
        lines = [answer.as_json(ready, options.generation) for answer in blank_answers(request, copies)]
        starts = beginnings(request, copies)
        assert len(lines) == len(starts) == len(set(starts)) == (copies if request.to_run else 1)
        assert all(line.startswith(f"{start}, ") for line, start in zip(lines, starts, strict=True))


def test_a_line_that_was_skipped_is_answered_with_its_error() -> None:
    options, ready = asked("a cat", "the old boat " * 20, bad_lines="skip")
    [answer] = blank_answers(ready.requests[1], 3)
    found = json.loads(answer.as_json(ready, options.generation))
    assert found == {"index": 1, "prompt": "the old boat " * 20, "error": ready.requests[1].error}
    assert "prompt 1 has " in found["error"]
