"""Flags: typed before anything starts, or refused with what was wanted."""

import pytest

from launcher.settings.flags import help_text, job_settings, reshard_options, run_options, run_settings
from launcher.settings.options import GENERATION_SECTIONS, CompleteSection, ReshardOptions
from launcher.settings.schema import Setting, settings_of
from parallel import RefusedError

GOOD = {"ckpt_dir": "d", "prompts": '["a"]'}


def test_flags_are_typed_as_their_settings_say() -> None:
    options = run_options(
        "complete", {**GOOD, "ckpt_dir": "1e5", "seed": "7", "stream": "True", "eos_ids": "[1, 2]", "top_p": "1"}
    )
    assert options.model.ckpt_dir == "1e5"
    assert (options.generation.seed, options.generation.stream, options.generation.eos_ids) == (7, True, [1, 2])
    assert options.generation.top_p == 1.0
    assert isinstance(options.generation, CompleteSection)
    assert options.generation.prompts == ["a"]


@pytest.mark.parametrize("name", ["nostream", "no_stream"])
def test_a_switch_can_be_turned_off(name: str) -> None:
    assert not run_options("complete", {**GOOD, name: "True"}).generation.stream


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("max_seqlen", "128", "--max_seqlen is not a flag of complete; did you mean 'max_seq_len'?"),
        ("max_seq_len", "two", "--max_seq_len is 'two'; wanted a whole number of 1 to 1048576"),
        ("max_seq_len", "0", "--max_seq_len is '0'; wanted"),
        ("max_seq_len", "1e3", "--max_seq_len is '1e3'; wanted"),
        ("temperature", "-1", "--temperature is '-1'; wanted a number of 0 to 10"),
        ("temperature", "nan", "--temperature is 'nan'; wanted a number of 0 to 10"),
        ("temperature", "inf", "--temperature is 'inf'; wanted a number of 0 to 10"),
        ("top_p", "0", "--top_p is '0'; wanted a number above 0, up to 1"),
        ("top_p", "2", "--top_p is '2'; wanted a number above 0, up to 1"),
        ("max_gen_len", "0", "--max_gen_len is '0'; wanted a whole number, 1 or more"),
        ("stream", "maybe", "--stream is 'maybe'; wanted true or false"),
        ("backend", "mpi", "--backend is 'mpi'; wanted auto, nccl or gloo"),
        ("tokenizer_path", "True", "--tokenizer_path has no value; wanted a text"),
        ("prompts", "[a,b]", "--prompts is '[a,b]'; wanted a list of texts (JSON"),
        ("prompts", '["a", 5]', "wanted a list of texts, but item 1 is 5"),
        ("eos_ids", "[-1]", "--eos_ids is '[-1]'; wanted a list of whole numbers"),
    ],
)
def test_a_bad_flag_is_refused_with_what_was_wanted(flag: str, value: str, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        run_options("complete", {**GOOD, flag: value})
    assert message in str(refused.value)


def test_a_missing_flag_is_named_with_its_meaning() -> None:
    with pytest.raises(RefusedError) as refused:
        run_options("complete", {"prompts": "[]"})
    assert (
        str(refused.value)
        == "--ckpt_dir is missing; wanted: folder with params.json and consolidated.NN.pth, or a Hugging Face folder"
    )
    with pytest.raises(RefusedError, match="--mp is missing"):
        reshard_options({})


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        *((command, run_settings(command)) for command in GENERATION_SECTIONS),
        ("reshard", settings_of(ReshardOptions)),
        ("run", job_settings()),
    ],
    ids=[*GENERATION_SECTIONS, "reshard", "run"],
)
def test_help_lists_every_flag_with_its_default(command: str, settings: dict[str, Setting]) -> None:
    lines = help_text(command, "usage", "summary", settings).splitlines()
    assert settings
    for name in settings:
        (line,) = [line for line in lines if line.startswith(f"  --{name} ")]
        assert "[default " in line or "[required; " in line
