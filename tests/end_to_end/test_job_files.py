"""Job files that cannot be run: each error is a line with file, line and column (FAULTS F91 to F100)."""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import BEFORE_LOADING_S, Said, assert_refused, run, snapshot

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
    "key_in_the_wrong_section": (
        "device: cpu",
        "seed: 3",
        ("job.yaml:7:3", "'seed' is not a key of parallel; it is a key of generation"),
    ),
    "key_of_another_tool": (
        "device: cpu",
        "master_addr: node0",
        ("job.yaml:7:3", "'master_addr' is not a key of parallel; write parallel.rdzv_endpoint: HOST:PORT"),
    ),
    "key_at_the_top": ("name: tiny", "seed: 3", ("job.yaml:1:1", "'seed' is not a section", "a key of generation")),
    "F92_text_for_a_number": ("max_seq_len: 32", "max_seq_len: many", ("job.yaml:5:16", '"many"', "whole number")),
    "F92_quoted_number": ("max_seq_len: 32", 'max_seq_len: "32"', ("job.yaml:5:16", '"32"', "whole number")),
    "F92_number_for_a_text": ("ckpt_dir: ckpt", "ckpt_dir: 12", ("job.yaml:4:13", "12", "text")),
    "F92_fraction_for_a_whole_number": ("max_seq_len: 32", "max_seq_len: 1.5", ("job.yaml:5:16", "1.5", "whole")),
    "F92_true_for_a_number": ("temperature: 0", "temperature: true", ("job.yaml:10:16", "true", "a number")),
    "F92_text_for_a_list": ("[the old boat]", "the old boat", ("job.yaml:9:12", "the old boat", "list of texts")),
    "F92_number_in_a_list_of_texts": (
        "[the old boat]",
        "[a, 5]",
        ("job.yaml:9:16", "generation.prompts[1] is 5", "put it in quotes: '5'"),
    ),
    "F92_list_for_a_section": ("  device: cpu", "  - cpu", ("job.yaml:7:3", "parallel", "device")),
    "F92_out_of_range": ("temperature: 0", "temperature: 11", ("job.yaml:10:16", "11", "0 to 10")),
    "F92_not_a_number": ("temperature: 0", "temperature: .nan", ("job.yaml:10:16", "0 to 10")),
    "F93_no_is_a_text": ("temperature: 0", "logprobs: no", ("job.yaml:10:13", '"no"', "true or false", "write false")),
    "F93_octal": (
        "max_seq_len: 32",
        "max_seq_len: 012",
        ("job.yaml:5:16", "12 in YAML 1.2 and 10 (octal)", "write 12"),
    ),
    "F93_exponent": ("max_seq_len: 32", "max_seq_len: 1e5", ("job.yaml:5:16", "whole number", "write 100000")),
    "F93_date": ("max_seq_len: 32", "max_seq_len: 2026-11-20", ("job.yaml:5:16", '"2026-11-20"', "whole number")),
    "F93_number_for_a_text": ("name: tiny", "name: 1e5", ("job.yaml:1:7", "name is 100000.0", "in quotes: '1e5'")),
    "F93_number_in_env": ("parallel:", "env: {A: 1, B: no}\nparallel:", ("job.yaml:6:10", "env.A is 1", "quotes: '1'")),
    "F93_times_are_texts": (
        "max_seq_len: 32",
        "max_seq_len: 12:30",
        ("job.yaml:5:16", '"12:30"', "whole number", "750 in YAML 1.1"),
    ),
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
    "F94_tab": ("  max_seq_len: 32", "\tmax_seq_len: 32", ("job.yaml:5:1", "not valid YAML", "a tab", "spaces")),
    "file_without_quotes": ("[the old boat]", "@prompts.txt", ("job.yaml:9:12", "cannot begin with @ without quotes")),
    "F99_bracket_left_open": ("[the old boat]", "[the old boat", ("job.yaml:10:", "not valid YAML")),
    "F99_number_of_5000_digits": ("max_seq_len: 32", "max_seq_len: " + "9" * 5000, ("job.yaml:5:16", "5000 digits")),
    "F99_second_document": ("generation:", "---\ngeneration:", ("job.yaml:8:1", "second document")),
    "F99_nul": ("name: tiny", "name: ti\0ny", ("job.yaml:1:9", "U+0000", "take it out")),
    "F99_next_line": (
        "the old boat",
        "the old\x85boat",
        ("job.yaml:9:20", "U+0085", "\\x85 in a text in double quotes"),
    ),
    "F99_line_separator": ("the old boat", "the\u2028boat", ("job.yaml:9:16", "U+2028", "\\u2028")),
    "F99_byte_order_mark_inside": ("the old boat", "the\ufeffboat", ("job.yaml:9:16", "U+FEFF")),
    "F99_nul_in_a_path": ("ckpt_dir: ckpt", 'ckpt_dir: "a\\0b"', ("job.yaml:4:13", "model.ckpt_dir", "without U+0000")),
    "F99_recursive_alias": ("[the old boat]", "&a [*a]", ("job.yaml:9:12", "anchors and aliases")),
    "F99_directive": ("name: tiny", "%YAML 1.1\n---\nname: tiny", ("job.yaml:1:1", "directives")),
    "F97_nested_without_end": ("[the old boat]", "[" * 3000, ("job.yaml:9:", "nested")),
    "F100_name_with_a_command": ("name: tiny", "name: 'tiny; rm -r x'", ("job.yaml:1:7", "name", "letters")),
    "F100_name_with_a_newline": ("name: tiny", 'name: "a\\nb"', ("job.yaml:1:7", "name", "letters")),
    "F100_name_that_leads_out": ("name: tiny", "name: ../../x", ("job.yaml:1:7", "name", "letters")),
    "F100_name_that_is_an_option": ("name: tiny", "name: --help", ("job.yaml:1:7", "name", "the first no '.' or '-'")),
    "F100_variable_with_a_command": (
        "parallel:",
        "env: {'A;touch b': x}\nparallel:",
        ("job.yaml:6:7", "is no name of a variable"),
    ),
    "F100_variable_with_a_newline": ("parallel:", 'env: {A: "x\\ny"}\nparallel:', ("job.yaml:6:10", "one line")),
    "F100_variable_of_the_launcher": (
        "parallel:",
        "env: {RANK: '1'}\nparallel:",
        ("job.yaml:6:7", "set by the launcher"),
    ),
    "F100_path_is_no_command": ("ckpt_dir: ckpt", "ckpt_dir: $(touch made)", ("$(touch made)", "does not exist")),
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
    "F99_not_utf8": (b"name: tiny\nmodel: \xff\n", ("job.yaml:2:8", "not UTF-8", "byte 18")),
    "F99_utf16": ("name: tiny\n".encode("utf-16"), ("job.yaml", "UTF-16", "save it as UTF-8")),
    "F99_two_megabytes": (b"# " + b"x" * 2**21, ("job.yaml", "2097154 bytes", "1048576", "prompts: '@FILE.txt'")),
    "F99_ten_megabytes": (b"a: 1\n" * (2 * 2**20), ("job.yaml", "10485760 bytes", "1048576")),
    "F99_a_hundred_thousand_keys": (
        b"".join(b"k%d: 1\n" % number for number in range(90_000)),
        ("job.yaml:25001:1", "more than 50000 values"),
    ),
    "F97_nested_for_a_megabyte": (b"[" * 2**20, ("job.yaml:1:21", "nested more than 20 deep")),
    "F97_mappings_for_a_megabyte": (b"{a: " * 2**18, ("job.yaml:1:81", "nested more than 20 deep")),
    "F96_a_megabyte_of_directives": (b"%TAG !a! b\n" * 90_000, ("job.yaml:1:1", "directives")),
}


@pytest.mark.parametrize(("content", "says"), CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_no_job_is_refused(content: bytes, says: Sequence[Said], case: Path) -> None:
    (case / "job.yaml").write_bytes(content)
    assert_refused(run(["run", "job.yaml"], case), says)


BOMBS = {
    "F95_alias_bomb": b"a: &a [x, x]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghijk"),
    "F96_merge_key_bomb": b"a: &a {"
    + b", ".join(b"k%d: 1" % number for number in range(15_000))
    + b"}\n"
    + b"".join(b"b%d: {<<: *a}\n" % number for number in range(200)),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_not_set_off(content: bytes, case: Path) -> None:
    (case / "job.yaml").write_bytes(content)
    outcome = run(["run", "job.yaml"], case)
    assert outcome.code == 2
    assert "anchors and aliases (& and *) are not used in job files" in outcome.err
    assert len(outcome.err.splitlines()) < 35
    assert outcome.seconds < BEFORE_LOADING_S
    assert outcome.peak_bytes < 300 * 2**20


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link", "loop", "unreadable", "stdin"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(kind: str, case: Path) -> None:
    path = case / "job.yaml"
    says = "is not a file but a pipe, socket or device"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            # A socket's path has a limit that temporary folders may be beyond.
            name = f"/tmp/shardrun-test-{os.getpid()}.sock"
            listener.bind(name)
            Path(name).rename(path)
            says = "job.yaml: cannot be read"
        elif kind == "device":
            path = Path("/dev/zero")
        elif kind == "link":
            path.symlink_to("nowhere")
            says = "job.yaml: is a link to nowhere, which does not exist"
        elif kind == "loop":
            path.symlink_to(path)
            says = "job.yaml: cannot be read"
        elif kind == "unreadable":
            path.write_text(GOOD)
            path.chmod(0)
            says = "job.yaml: cannot be read" if os.geteuid() else "does not exist"  # root reads it all the same
        else:
            path = Path("/dev/stdin")
            says = "a job is not read from stdin, because each rank reads it; write it to a file"
        assert_refused(
            run(["run", str(path) if path.is_absolute() and kind in ("device", "stdin") else "job.yaml"], case), [says]
        )


@pytest.mark.parametrize("change", ["byte order mark", "line ends of Windows", "both"])
def test_what_editors_of_windows_write_is_read(change: str, case: Path) -> None:
    data = GOOD.replace("temperature: 0", "temperature: hot").encode()
    data = data.replace(b"\n", b"\r\n") if change != "byte order mark" else data
    data = b"\xef\xbb\xbf" + data if change != "line ends of Windows" else data
    (case / "job.yaml").write_bytes(data)
    assert_refused(run(["run", "job.yaml"], case), ["job.yaml:10:16: generation.temperature is"])


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
        (["tmp"], ["tmp", "is not a file but a folder", "YAML job file"]),
        (["job.yaml", "generation.temprature=1"], ["temprature", "not a key of generation", "'temperature'"]),
        (["job.yaml", "generations.seed=1"], ["generations", "not a section", "'generation'"]),
        (
            ["job.yaml", "generation.temperature=hot"],
            ["the command line", "generation.temperature", '"hot"', "0 to 10"],
        ),
        (["job.yaml", "hello"], ["'hello'", "section.key=value"]),
        (["job.yaml", "generation.prompts=[a"], ["generation.prompts is '[a'", "not valid YAML"]),
        (["job.yaml", "num_beams=2"], ["'num_beams' is not a section", "did you mean generation.num_beams=2?"]),
        (["job.yaml", "--temperature", "0.5"], ["temperature=0.5", "did you mean generation.temperature=0.5?"]),
        (["job.yaml", "--generation.seed=1e5"], ["the command line: generation.seed is 100000.0", "write 100000"]),
        (["job.yaml", "--generation.seed", "012"], ["the command line: generation.seed is 012", "write 12"]),
        (["job.yaml", "workdir=nowhere"], ["workdir", "nowhere: does not exist; wanted a folder"]),
        (["job.yaml", "env.A-B=x"], ["the command line: 'A-B' is no name of a variable"]),
        (["job.yaml", "cluster.kind=pbs"], ['the command line: cluster.kind is "pbs"; wanted slurm or kubernetes']),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[-1].islower() else None,
)
def test_a_job_that_is_asked_for_wrongly_is_refused(
    words: list[str], says: list[str], healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    (case / "job.yaml").write_text(GOOD.replace("ckpt_dir: ckpt", f"ckpt_dir: {healthy(1, TINY)}"))
    assert_refused(run(["run", *words], case), says)
