"""Job files that cannot be run: each error is a line with file, line and column (FAULTS F91 to F99)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Said, assert_refused, run, snapshot

GOOD = """\
name: tiny
command: complete
model:
  ckpt_dir: ckpt
  max_seq_len: 32
parallel:
  device: cpu
generation:
  prompts: [the old boat]
  temperature: 0
"""
# What is written in place of what in GOOD; and what must be said.
EDITS: dict[str, tuple[str, str, Sequence[Said]]] = {
    "unknown_key": ("max_seq_len: 32", "max_seq_length: 32", ("job.yaml:5:3", "max_seq_length", "'max_seq_len'")),
    "unknown_section": ("parallel:", "paralel:", ("job.yaml:6:1", "paralel", "'parallel'")),
    "key_in_the_wrong_section": ("device: cpu", "seed: 3", ("job.yaml:7:3", "seed", "parallel")),
    "F92_text_for_a_number": ("max_seq_len: 32", "max_seq_len: many", ("job.yaml:5:16", '"many"', "whole number")),
    "F92_quoted_number": ("max_seq_len: 32", 'max_seq_len: "32"', ("job.yaml:5:16", '"32"', "whole number")),
    "F92_number_for_a_text": ("ckpt_dir: ckpt", "ckpt_dir: 12", ("job.yaml:4:13", "12", "text")),
    "F92_fraction_for_a_whole_number": ("max_seq_len: 32", "max_seq_len: 1.5", ("job.yaml:5:16", "1.5", "whole")),
    "F92_true_for_a_number": ("temperature: 0", "temperature: true", ("job.yaml:10:16", "true", "a number")),
    "F92_text_for_a_list": ("[the old boat]", "the old boat", ("job.yaml:9:12", "the old boat", "list of texts")),
    "F92_number_in_a_list_of_texts": ("[the old boat]", "[a, 5]", ("job.yaml:9:12", "item 1 is 5")),
    "F92_list_for_a_section": ("  device: cpu", "  - cpu", ("job.yaml:7:3", "parallel", "device")),
    "F92_out_of_range": ("temperature: 0", "temperature: 11", ("job.yaml:10:16", "11", "0 to 10")),
    "F92_not_a_number": ("temperature: 0", "temperature: .nan", ("job.yaml:10:16", "0 to 10")),
    "F93_no_is_a_text": ("temperature: 0", "logprobs: no", ("job.yaml:10:13", '"no"', "true or false")),
    "F93_times_are_texts": ("max_seq_len: 32", "max_seq_len: 12:30", ("job.yaml:5:16", '"12:30"', "whole number")),
    "F92_choice_unknown": ("device: cpu", "device: gpu", ("job.yaml:7:11", '"gpu"', "auto, cuda or cpu")),
    "F91_duplicate_key": (
        "max_seq_len: 32",
        "ckpt_dir: other",
        ("job.yaml:5:3", "'ckpt_dir' is given twice", "line 4"),
    ),
    "F91_duplicate_section": ("parallel:\n  device: cpu", "model: {}", ("job.yaml:6:1", "'model'", "twice", "line 3")),
    "F98_python_tag": ("ckpt_dir: ckpt", "ckpt_dir: !!python/name:os.system x", ("job.yaml:4:13", "python/name")),
    "F98_custom_tag": ("ckpt_dir: ckpt", "ckpt_dir: !path ckpt", ("job.yaml:4:13", "tag !path")),
    "F95_anchor": ("ckpt_dir: ckpt", "ckpt_dir: &a ckpt", ("job.yaml:4:13", "anchors and aliases")),
    "F95_alias": ("ckpt_dir: ckpt", "ckpt_dir: *a", ("job.yaml:4:13", "anchors and aliases")),
    "F96_merge_key": ("max_seq_len: 32", "<<: {max_seq_len: 3}", ("job.yaml:5:3", "<<")),
    "F94_tab": ("  max_seq_len: 32", "\tmax_seq_len: 32", ("job.yaml:5:1", "not valid YAML")),
    "F99_bracket_left_open": ("[the old boat]", "[the old boat", ("job.yaml:10:", "not valid YAML")),
    "F99_number_of_5000_digits": ("max_seq_len: 32", "max_seq_len: " + "9" * 5000, ("job.yaml:5:16", "5000 digits")),
    "F99_second_document": ("generation:", "---\ngeneration:", ("job.yaml:8:1", "second document")),
    "F99_nul": ("name: tiny", "name: ti\0ny", ("job.yaml", "not valid YAML")),
    "F97_nested_without_end": ("[the old boat]", "[" * 3000, ("job.yaml:9:", "nested")),
    "F100_name_with_a_command": ("name: tiny", "name: 'tiny; rm -r x'", ("job.yaml:1:7", "name", "letters")),
    "command_unknown": ("command: complete", "command: compleet", ("job.yaml:2:10", "compleet", "complete")),
    "key_missing": ("  ckpt_dir: ckpt\n", "", ("job.yaml", "model.ckpt_dir is missing", "params.json")),
    "checkpoint_missing": ("ckpt_dir: ckpt", "ckpt_dir: nowhere", ("nowhere", "does not exist")),
}


@pytest.mark.parametrize(("old", "new", "says"), EDITS.values(), ids=EDITS)
def test_a_wrong_job_file_is_refused_with_file_line_and_column(
    old: str, new: str, says: Sequence[Said], case: Path
) -> None:
    assert GOOD.count(old) == 1
    (case / "job.yaml").write_text(GOOD.replace(old, new))
    before = snapshot(case)
    assert_refused(run(["run", "job.yaml"], case), says)
    assert snapshot(case) == before


CONTENTS: dict[str, tuple[bytes, Sequence[Said]]] = {
    "F99_empty": (b"", ("job.yaml", "is empty", "model, parallel, generation")),
    "F99_scalar": (b"hello\n", ("job.yaml:1:1", "'hello'", "sections")),
    "F99_list": (b"- a\n- b\n", ("job.yaml:1:1", "sections")),
    "F99_not_utf8": (b"name: tiny\nmodel: \xff\n", ("job.yaml:2", "not UTF-8", "byte 18")),
    "F99_two_megabytes": (b"# " + b"x" * 2**21, ("job.yaml", "2097154 bytes", "1048576")),
    "F95_alias_bomb": (
        b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghijk"),
        ("job.yaml:1:4", "anchors and aliases"),
    ),
}


@pytest.mark.parametrize(("content", "says"), CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_no_job_is_refused(content: bytes, says: Sequence[Said], case: Path) -> None:
    (case / "job.yaml").write_bytes(content)
    assert_refused(run(["run", "job.yaml"], case), says)


def test_all_errors_of_a_job_file_are_told_at_once(case: Path) -> None:
    text = GOOD.replace("max_seq_len: 32", "max_seq_len: many").replace("device: cpu", "devise: cpu")
    (case / "job.yaml").write_text(text)
    outcome = run(["run", "job.yaml"], case)
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert lines[0] == "shardrun: error:"
    assert len(lines) == 3
    assert lines[1].startswith("job.yaml:5:16: model.max_seq_len")
    assert lines[2].startswith("job.yaml:7:3: 'devise'")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing.yaml"], ["missing.yaml", "does not exist", "YAML job file"]),
        (["tmp"], ["tmp", "is not a file", "YAML job file"]),
        (["job.yaml", "generation.temprature=1"], ["temprature", "not a key of generation", "'temperature'"]),
        (["job.yaml", "generations.seed=1"], ["generations", "not a section", "'generation'"]),
        (
            ["job.yaml", "generation.temperature=hot"],
            ["the command line", "generation.temperature", '"hot"', "0 to 10"],
        ),
        (["job.yaml", "hello"], ["'hello'", "section.key=value"]),
        (["job.yaml", "generation.prompts=[a"], ["generation.prompts=[a", "not valid YAML"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[-1].islower() else None,
)
def test_a_job_that_is_asked_for_wrongly_is_refused(
    words: list[str], says: list[str], healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    (case / "job.yaml").write_text(GOOD.replace("ckpt_dir: ckpt", f"ckpt_dir: {healthy(1, TINY)}"))
    assert_refused(run(["run", *words], case), says)
