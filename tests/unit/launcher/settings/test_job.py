"""Job files: sections, overrides, paths, and every error of a file at once."""

from pathlib import Path

import pytest

from launcher.settings.job import read_job
from launcher.settings.options import ChatSection, ScoreSection
from parallel import RefusedError

ROOT = Path(__file__).resolve().parents[4]
GOOD = "model: {ckpt_dir: demo}\ngeneration:\n  prompts: [Once]\n  temperature: 0\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RefusedError) as refused:
        read_job(path, overrides)
    return str(refused.value)


def test_a_job_has_the_flags_defaults_and_paths_relative_to_its_file(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, GOOD))
    assert (job.name, job.command) == ("job", "complete")
    assert job.options.model.ckpt_dir == str(tmp_path / "demo")
    assert job.options.generation.temperature == 0.0
    assert job.options.generation.top_p == 0.9
    assert job.options.parallel.nproc_per_node is None


def test_overrides_win_and_their_paths_are_relative_to_the_current_folder(tmp_path: Path) -> None:
    job = read_job(
        write(tmp_path, GOOD),
        ["generation.temperature=0.5", "model.ckpt_dir=other", 'generation.prompts=["a", "b"]', "name=x"],
        {"generation.seed": "7"},
    )
    assert job.options.generation.temperature == 0.5
    assert job.options.model.ckpt_dir == "other"
    assert job.options.generation.prompts == ["a", "b"]
    assert (job.name, job.options.generation.seed) == ("x", 7)


def test_every_error_of_a_file_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model:\n  ckpt_dir: 5\n  max_seqlen: 12\nparalel: {}\ngeneration:\n  prompts: [1]\n  temperature: hot\n"
        "  stream: yes\n",
    )
    assert refusal(path).splitlines() == [
        f"{path}:2:13: model.ckpt_dir is 5; wanted a text",
        f"{path}:3:3: 'max_seqlen' is not a key of model; did you mean 'max_seq_len'?",
        f"{path}:6:12: generation.prompts is [1]; wanted a list of texts, but item 0 is 1",
        f'{path}:7:16: generation.temperature is "hot"; wanted a number of 0 to 10',
        f'{path}:8:11: generation.stream is "yes"; wanted true or false',
        f"{path}:4:1: 'paralel' is not a section of a job; did you mean 'parallel'?",
    ]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {ckpt_dir: demo}\n")
    assert refusal(path) == (
        f"{path}:1:1: generation.prompts is missing; wanted: JSON list of texts, or @FILE.txt (one a line), or "
        '@FILE.jsonl ({"prompt": ...} a line)'
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.temprature=0", "'temprature' is not a key of generation; did you mean 'temperature'?"),
        ("generation.temperature=x", 'the command line: generation.temperature is "x"; wanted a number of 0 to 10'),
        ("modle.ckpt_dir=x", "'modle' is not a section of a job; did you mean 'model'?"),
        ("temperature", "'temperature' is not an override; wanted section.key=value"),
        ("name=a b", "name is \"a b\"; wanted 1 to 64 letters, digits, '.', '_' and '-'"),
        ("command=plan", 'command is "plan"; wanted complete, chat, infill or score'),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(write(tmp_path, GOOD), override)


@pytest.mark.parametrize("text", ["hello", "- 1", "5"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "wanted sections: name, command, model, parallel, generation" in refusal(write(tmp_path, text))


def test_the_job_file_of_the_demo_is_valid() -> None:
    job = read_job(ROOT / "configs" / "demo.yaml")
    assert job.options.parallel.nproc_per_node == 2
    assert Path(job.options.model.ckpt_dir) == ROOT / "configs" / "demo"


def test_the_command_of_a_job_decides_which_keys_it_has(tmp_path: Path) -> None:
    chat = "command: chat\nmodel: {ckpt_dir: demo}\ngeneration: {dialogs: '@talk.jsonl', system: Be brief}\n"
    options = read_job(write(tmp_path, chat)).options
    assert isinstance(options.generation, ChatSection)
    assert options.generation.dialogs == [f"@{tmp_path}/talk.jsonl"]
    assert "'dialogs' is not a key of generation" in refusal(write(tmp_path, chat.replace("chat", "complete")))
    overridden = read_job(write(tmp_path, "model: {ckpt_dir: demo}\n"), ["generation.text=Once", "command=score"])
    assert isinstance(overridden.options.generation, ScoreSection)
    assert overridden.options.generation.text == "Once"
