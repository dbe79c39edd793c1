"""Answers come out in the order of their requests, on stdout or in a file."""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import pytest

from launcher.generating.answers import Answer, blank_answers
from launcher.generating.output import _FREE, _origin, open_output
from launcher.generating.preflight import Ready, preflight
from launcher.settings.flags import run_options
from launcher.settings.options import GENERATION_SECTIONS, CompleteSection, ModelSection, RunOptions
from model.generation.settings import Event
from parallel import RefusedError, World
from parallel.environment import Environment, Placement

DEMO = str(Path(__file__).resolve().parents[4] / "configs" / "demo")
PROMPTS = ["a cat", "an owl", "a boat", "the tide", "a river"]


@pytest.fixture
def world() -> World:
    return World(Environment(), Placement(device="cpu", backend=None, threads=1, reason=""), None)


def asked(prompts: list[str] = PROMPTS, **flags: str) -> tuple[RunOptions, Ready]:
    options = run_options("complete", {"ckpt_dir": DEMO, "prompts": json.dumps(prompts), **flags})
    return options, preflight(options, 1)


def answers(options: RunOptions, ready: Ready, index: int) -> list[Answer]:
    found = blank_answers(ready.requests[index], options.generation.num_return_sequences)
    for answer in found:
        answer.take(Event(0, 300 + index, -0.5, "length"))
    return found


def lines(options: RunOptions, ready: Ready, indices: Iterable[int]) -> str:
    found = (answer for index in indices for answer in answers(options, ready, index))
    return "".join(f"{answer.as_json(ready, options.generation)}\n" for answer in found)


def test_what_is_in_order_is_given_out_and_the_rest_waits_for_it(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    options, ready = asked(json="true")
    out = []
    with open_output(world, options, ready) as output:
        for indices in ([3, 1], [0], [4], [2]):
            for index in indices:
                output.hold(answers(options, ready, index))
            output.release()
            out.append(capfd.readouterr().out)
        output.finish()
    assert out == ["", lines(options, ready, [0, 1]), "", lines(options, ready, [2, 3, 4])]


def test_texts_have_an_empty_line_between_them_and_none_where_one_was_skipped(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    options, ready = asked(["\udc00", "a cat", "\udc00", "an owl"], bad_lines="skip")
    with open_output(world, options, ready) as output:
        for index in (1, 3):
            output.hold(answers(options, ready, index))
            output.release()
        output.finish()
    first, second = (ready.tokenizer.decode([300 + index]) for index in (1, 3))
    assert capfd.readouterr().out == f"{first}\n\n{second}\n"


@pytest.mark.parametrize("copies", ["1", "3"])
def test_a_file_is_gone_on_with_at_the_first_request_without_all_its_answers(
    copies: str, world: World, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    options, ready = asked(output=str(path), num_return_sequences=copies)
    with open_output(world, options, ready) as output:
        for index in (0, 1, 3):
            output.hold(answers(options, ready, index))
        output.release()
    assert path.read_text() == lines(options, ready, [0, 1])
    assert (tmp_path / "out.jsonl.run").exists()
    path.write_bytes(path.read_bytes()[:-5])
    options, ready = asked(output=str(path), num_return_sequences=copies, resume="true")
    with open_output(world, options, ready) as output:
        assert output.first == 1
        for index in range(1, 5):
            output.hold(answers(options, ready, index))
        output.release()
        output.finish()
    assert path.read_text() == lines(options, ready, range(5))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_lines_of_skipped_requests_are_in_the_file_too(world: World, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    prompts = ["\udc00", "a cat", "b\udc00"]
    for done, resume in ((0, "false"), (2, "true")):
        options, ready = asked(prompts, output=str(path), bad_lines="skip", resume=resume)
        with open_output(world, options, ready) as output:
            assert output.first == done
            if done == 0:
                output.hold(answers(options, ready, 1))
            output.release()
            if done:
                output.finish()
        if done == 0:
            # Without the last line.
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [("error" in answer, answer["prompt"]) for answer in found] == [(True, "?"), (False, "a cat"), (True, "b?")]


def test_every_setting_is_compared_unless_it_is_known_to_change_no_answer(world: World) -> None:
    options, ready = asked()
    names = {field.name for section in (ModelSection, CompleteSection) for field in fields(section)}
    assert _origin(world, options, ready).settings.keys() == {"command", *(names - _FREE)}
    known = {field.name for section in (ModelSection, *GENERATION_SECTIONS.values()) for field in fields(section)}
    assert known >= _FREE


@pytest.mark.parametrize(
    ("prompts", "flags", "says"),
    [
        ([*PROMPTS, "more"], {}, "was begun with other prompts or dialogs; go on with the same"),
        ([*PROMPTS[:4], "an ocean"], {}, "was begun with other prompts or dialogs"),
        (["a dog", *PROMPTS[1:]], {}, "line 1 answers another request than this run's"),
        (PROMPTS, {"temperature": "0.7"}, "was begun with temperature 0.6, and this run has 0.7"),
        (PROMPTS, {"max_batch_size": "4"}, "was begun with max_batch_size 8, and this run has 4"),
        (PROMPTS, {"logprobs": "true"}, "was begun with logprobs false, and this run has true"),
    ],
)
def test_a_file_of_other_requests_or_settings_is_refused(
    prompts: list[str], flags: dict[str, str], says: str, world: World, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    options, ready = asked(output=str(path))
    with open_output(world, options, ready) as output:
        output.hold(answers(options, ready, 0))
        output.release()
    before = path.read_bytes()
    options, ready = asked(prompts, output=str(path), resume="true", **flags)
    with pytest.raises(RefusedError) as refused, open_output(world, options, ready):
        pass
    assert says in str(refused.value)
    assert path.read_bytes() == before
