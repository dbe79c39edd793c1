"""Faults of prompts and flags (FAULTS D79 to D89), and the typing errors of a newcomer, through the real command."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Said, assert_done, assert_refused, complete, run, snapshot

LONG = json.dumps(["a cat", "the old boat " * 20])

# Flags that stand in place of, or beside, those of a healthy request; and what must be said.
FLAGS: dict[str, tuple[Sequence[str], Sequence[Said]]] = {
    "D79_prompt_too_long": (("--prompts", LONG), ("prompt 1", "tokens", "max_seq_len is 32", "shorten")),
    "D80_no_prompts": (("--prompts", "[]"), ("--prompts", "empty list")),
    "D82_a_number_among_prompts": (("--prompts", '["a", 5]'), ("--prompts", "item 1 is 5", "texts")),
    "D82_null_among_prompts": (("--prompts", "[null]"), ("--prompts", "item 0 is null", "texts")),
    "D82_lone_surrogate": (("--prompts", '["ok", "ab\\ud800c"]'), ("prompt 1", "byte 2", "surrogate")),
    "D82_bytes_that_are_no_utf8": (("--prompts", '["caf\udce9"]'), ("prompt 0", "byte 3", "UTF-8")),
    "D82_prompts_not_json": (("--prompts", "Once upon a time"), ("--prompts is 'Once upon a time'", "JSON", "@FILE")),
    "D82_prompts_an_object": (("--prompts", '{"prompt": "a"}'), ("--prompts", "list of texts")),
    "D82_prompts_nested_without_end": (("--prompts", "[" * 50_000), ("--prompts", "list of texts")),
    "D84_temperature_negative": (("--temperature", "-1"), ("--temperature", "-1", "0 to 10")),
    "D84_temperature_negative_with_equals": (("--temperature=-1",), ("--temperature", "-1", "0 to 10")),
    "D84_temperature_nan": (("--temperature", "nan"), ("--temperature", "nan", "0 to 10")),
    "D84_temperature_too_high": (("--temperature", "10.5"), ("--temperature", "10.5", "0 to 10")),
    "D84_temperature_a_word": (("--temperature", "warm"), ("--temperature is 'warm'", "a number", "0 to 10")),
    "D85_temperature_infinite": (("--temperature", "inf"), ("--temperature", "inf", "0 to 10")),
    "D86_top_p_0": (("--top_p", "0"), ("--top_p is '0'", "above 0", "up to 1")),
    "D86_top_p_2": (("--top_p", "2"), ("--top_p is '2'", "above 0", "up to 1")),
    "D86_top_p_nan": (("--top_p", "nan"), ("--top_p is 'nan'", "above 0", "up to 1")),
    "D87_top_p_negative": (("--top_p", "-1"), ("--top_p", "-1", "above 0", "up to 1")),
    "D88_max_gen_len_0": (("--max_gen_len", "0"), ("--max_gen_len is '0'", "1 or more")),
    "D88_max_gen_len_negative": (("--max_gen_len", "-5"), ("--max_gen_len", "-5", "1 or more")),
    "D89_max_seq_len_0": (("--max_seq_len", "0"), ("--max_seq_len is '0'", "whole number", "1 to")),
    "D89_max_seq_len_negative": (("--max_seq_len", "-1"), ("--max_seq_len", "-1", "1 to")),
    "D89_max_seq_len_a_fraction": (("--max_seq_len", "1.5"), ("--max_seq_len is '1.5'", "whole number")),
    "D89_max_seq_len_of_20_digits": (("--max_seq_len", "9" * 20), ("--max_seq_len", "whole number")),
    "D89_max_seq_len_of_a_million_times_the_memory": (("--max_seq_len", "1e9"), ("--max_seq_len", "whole number")),
    "D89_max_batch_size_0": (("--max_batch_size", "0"), ("--max_batch_size is '0'", "1 to")),
    "D89_max_batch_size_negative": (("--max_batch_size", "-1"), ("--max_batch_size", "-1", "1 to")),
    "seed_negative": (("--seed", "-1"), ("--seed", "-1", "0")),
    "eos_id_beyond_the_vocabulary": (("--eos_ids", "[300]"), ("--eos_ids", "300", "0 to 299")),
    "eos_ids_a_word": (("--eos_ids", "two"), ("--eos_ids is 'two'", "whole numbers", "as 1,2 or JSON")),
    "model_parallel_size_other_than_the_ranks": (
        ("--model_parallel_size", "2"),
        ("--model_parallel_size is 2", "1 rank", "--nproc_per_node 2"),
    ),
    "typing_unknown_flag": (("--temprature", "1"), ("--temprature", "not a flag of complete", "'temperature'")),
    "typing_unknown_flag_with_dashes": (("--max-gen-length", "1"), ("max", "not a flag of complete", "'max_gen_len'")),
    "typing_unknown_flag_like_none": (("--zzz", "1"), ("--zzz", "not a flag of complete", "ckpt_dir")),
    "typing_flag_twice": (("--seed", "1", "--seed", "2"), ("--seed is given twice",)),
    "typing_flag_twice_in_both_spellings": (("--top_p", "1", "--top-p=1"), ("--top_p is given twice",)),
    "typing_value_missing_at_the_end": (("--max_seq_len",), ("--max_seq_len has no value", "whole number")),
    "typing_value_missing_before_a_flag": (("--tokenizer_path", "--json"), ("--tokenizer_path has no value",)),
    "typing_value_empty": (("--tokenizer_path", ""), ("--tokenizer_path is ''", "not empty")),
    "typing_dtype_unknown": (("--dtype", "fp16"), ("--dtype is 'fp16'", "float16", "bfloat16")),
    "typing_device_unknown": (("--device", "gpu"), ("--device is 'gpu'", "cuda", "cpu")),
    "typing_switch_with_a_wrong_value": (("--json=maybe",), ("--json is 'maybe'", "true or false")),
    "typing_a_word_too_many": (("--json=true", "hello"), ("unexpected 'hello'", "--ckpt_dir")),
    "typing_a_lone_dash": (("-",), ("'-' has no meaning", "--name value")),
    "typing_fires_own_flags": (("--", "--interactive"), ("'--' has no meaning", "--name value")),
    "prompts_file_missing": (("--prompts", "@no/such.txt"), ("no/such.txt", "does not exist")),
    "prompts_file_a_folder": (("--prompts", "@tmp"), ("tmp", "is a folder; wanted a file")),
    "nproc_per_node_0": (("--nproc_per_node", "0"), ("--nproc_per_node is '0'", "1 to")),
    "timeout_0": (("--timeout_s", "0"), ("--timeout_s is '0'", "1 to")),
}


@pytest.mark.parametrize(("flags", "says"), FLAGS.values(), ids=FLAGS)
def test_a_request_that_cannot_be_run_is_refused_before_anything_is_loaded(
    flags: Sequence[str], says: Sequence[Said], healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    before = snapshot(case)
    assert_refused(run(complete(healthy(1, TINY), *flags), case), says)
    assert snapshot(case) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compleet"], ["'compleet' is not a command", "did you mean 'complete'"]),
        (["zzz"], ["'zzz' is not a command", "complete", "reshard", "run"]),
        (["complete"], ["--ckpt_dir is missing", "params.json"]),
        (["complete", "--ckpt_dir", "x"], ["--prompts is missing", "JSON"]),
        (["complete", "--prompts", "[]"], ["--ckpt_dir is missing"]),
        (["complete", "--ckpt_dir", "no\udcff", "--prompts", '["a"]'], ["no", "does not exist"]),
        (["run"], ["job file", "JOB.yaml"]),
        (["reshard"], ["SRC and DST"]),
        (["reshard", "a", "b"], ["--mp is missing"]),
        (["reshard", "a", "b", "--mp", "two"], ["--mp is 'two'", "whole number"]),
        (["reshard", "a", "b", "--mp", "0"], ["--mp is '0'", "1 to"]),
        (["reshard", "a", "b", "--mpp", "2"], ["--mpp", "not a flag of reshard", "'mp'"]),
        (["reshard", "a", "b", "c", "--mp", "2"], ["SRC and DST", "3"]),
    ],
    ids=lambda value: "_".join(value)[:40].replace("\udcff", "?") if value and isinstance(value, list) else None,
)
def test_a_command_that_is_typed_wrongly_is_refused_with_what_was_meant(
    words: list[str], says: list[str], case: Path
) -> None:
    assert_refused(run(words, case), says)


PROMPT_FILES = {
    "D82_bad_utf8": ("p.txt", b"a cat\nab\xff\n", ("p.txt:2", "UTF-8", "byte 8")),
    "empty_file": ("p.txt", b"\n\n", ("p.txt", "no prompts")),
    "bad_json_line": ("p.jsonl", b'{"prompt": "a"}\n{"prompt" "b"}\n', ("p.jsonl:2", "not valid JSON")),
    "line_without_prompt": ("p.jsonl", b'{"text": "a"}\n', ("p.jsonl:1", '"prompt"')),
    "D82_prompt_a_number": ("p.jsonl", b'{"prompt": 5}\n', ("p.jsonl:1", '"prompt"')),
    "D82_lone_surrogate": ("p.jsonl", b'{"prompt": "a\\udc00"}\n', ("p.jsonl:1 (prompt 0)", "byte 1")),
    "D79_line_too_long": ("p.txt", b"a cat\n" + b"the boat " * 30, ("p.txt:2 (prompt 1) has", "max_seq_len is 32")),
}


@pytest.mark.parametrize(("name", "content", "says"), PROMPT_FILES.values(), ids=PROMPT_FILES)
def test_a_file_of_prompts_that_cannot_be_read_is_refused_with_its_line(
    name: str, content: bytes, says: Sequence[Said], healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    (case / name).write_bytes(content)
    before = snapshot(case)
    assert_refused(run(complete(healthy(1, TINY), "--prompts", f"@{name}"), case), says)
    assert snapshot(case) == before


def test_D81_D83_D88_an_empty_prompt_many_prompts_and_a_great_length_are_run_with_a_note(
    healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    prompts = json.dumps(["", "a cat", "the tide", "", "a river"])
    flags = ("--max_batch_size", "4", "--max_gen_len", "100000", "--max_seq_len", "16", "--eos_ids", "[]", "--json")
    before = snapshot(case)
    outcome = run(complete(healthy(1, TINY), *flags, prompts=prompts), case)
    assert_done(outcome, ["max_gen_len 100000 is clipped", "max_seq_len 16"])
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3, 4]
    assert all(len(answer["prompt_tokens"]) + len(answer["tokens"]) == 16 for answer in answers)
    # An empty text has one token, bos; with temperature 0 the same prompt has the same answer in any batch.
    assert answers[0]["prompt_tokens"] == answers[3]["prompt_tokens"] == [1]
    assert answers[0]["tokens"] == answers[3]["tokens"]
    assert snapshot(case) == before


def test_D84_a_temperature_of_nearly_nothing_takes_the_likeliest_token(
    healthy: Callable[[int, Sizes], Path], case: Path, healthy_answer: str
) -> None:
    outcome = run(complete(healthy(1, TINY), "--temperature", "1e-30", "--json"), case)
    assert_done(outcome)
    assert outcome.out == healthy_answer
