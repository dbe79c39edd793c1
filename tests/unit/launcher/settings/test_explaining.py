"""The surprises of YAML, each told with how to write what was meant (FAULTS F92 and F93)."""

from pathlib import Path

import pytest

from launcher.settings.job import read_job
from parallel import RefusedError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stream: no", 'stream is "no"; wanted true or false; no is a text in YAML 1.2: write false'),
        ("stream: On", 'stream is "On"; wanted true or false; On is a text in YAML 1.2: write true'),
        ("stream: 1", "stream is 1; wanted true or false; write true"),
        ("stream: 'true'", 'stream is "true"; wanted true or false; without quotes: true'),
        ("stream: maybe", 'stream is "maybe"; wanted true or false'),
        ("seed: 012", "seed is 012, which is 12 in YAML 1.2 and 10 (octal) in YAML 1.1; write 12"),
        ("seed: 089", "seed is 089, which is 89 in YAML 1.2 and a text in YAML 1.1; write 89"),
        ("temperature: 01", "temperature is 01, which is 1 in YAML 1.2 and 1 (octal) in YAML 1.1; write 1"),
        ("eos_ids: [1, 02]", "eos_ids[1] is 02, which is 2 in YAML 1.2 and 2 (octal) in YAML 1.1; write 2"),
        (
            "seed: 1e5",
            "seed is 100000.0; wanted a whole number of 0 to 9223372036854775807; 1e5 is a number with a point",
        ),
        ("seed: 1.0", "seed is 1.0; wanted a whole number of 0 to 9223372036854775807; 1.0 is a number with a point"),
        ("seed: 1.5", "seed is 1.5; wanted a whole number of 0 to 9223372036854775807"),
        ("seed: 12:30:45", 'seed is "12:30:45"; wanted a whole number of 0 to 9223372036854775807; 12:30:45 is a text'),
        ("temperature: -1:30", "; -1:30 is a text in YAML 1.2 and -90 in YAML 1.1: write the number"),
        ("seed: 1_000", "; write 1000"),
        ("seed: 10,000", "; write 10000"),
        ("seed: '7'", 'seed is "7"; wanted a whole number of 0 to 9223372036854775807; without quotes: 7'),
        ("seed: 2026-11-20", 'seed is "2026-11-20"; wanted a whole number of 0 to 9223372036854775807'),
        ("seed:", "seed is null; wanted a whole number of 0 to 9223372036854775807; nothing stands behind the colon"),
        ("seed: ~", "seed is null; wanted a whole number of 0 to 9223372036854775807"),
        ("temperature: .inf", "temperature is Infinity; wanted a number of 0 to 10"),
        ("temperature: .nan", "temperature is NaN; wanted a number of 0 to 10"),
        ("output: 2026", "output is 2026; wanted a text; put it in quotes: '2026'"),
        ("output: 1e5", "output is 100000.0; wanted a text; put it in quotes: '1e5'"),
        ("output: true", "output is true; wanted a text; put it in quotes: 'true'"),
        ("output: 0x1F", "output is 31; wanted a text; put it in quotes: '0x1F'"),
        ("stop: end", 'stop is "end"; wanted a list of texts (JSON, as ["a", "b"]); write it as a list: [end]'),
        ("eos_ids: 2", "eos_ids is 2; wanted a list of whole numbers (as 1,2 or JSON); write it as a list: [2]"),
        ("eos_ids: [-1]", "eos_ids[0] is -1; wanted a whole number, 0 or more"),
        ("stop: {a: b}", 'stop is {"a": "b"}; wanted a list of texts'),
    ],
)
def test_a_value_that_is_not_what_it_looks_like_is_explained(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {{ckpt_dir: x}}\ngeneration:\n  prompts: [a]\n  {line}\n")
    with pytest.raises(RefusedError) as refused:
        read_job(path)
    assert (
        f"generation.{message}" in str(refused.value) if not message.startswith(";") else message in str(refused.value)
    )
    assert str(refused.value).startswith(f"{path}:4:")


@pytest.mark.parametrize(
    ("line", "value"),
    [("seed: 0x1F", 31), ("seed: 0o17", 15), ("seed: +7", 7), ("seed: 0", 0), ("temperature: 1", 1.0)],
)
def test_what_has_one_meaning_is_read(tmp_path: Path, line: str, value: object) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {{ckpt_dir: x}}\ngeneration:\n  prompts: [a]\n  {line}\n")
    assert getattr(read_job(path).options.generation, line.partition(":")[0]) == value
