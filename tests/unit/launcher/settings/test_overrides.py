"""Overrides: typed as a file's values are, laid over them, refused with what was meant."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.settings.cluster_options import SlurmSection
from launcher.settings.job import read_job
from launcher.settings.options import CompleteSection
from parallel import RefusedError

GOOD = "model: {ckpt_dir: demo}\ngeneration: {prompts: [Once]}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


def test_overrides_are_typed_as_values_of_a_file_are(path: Path) -> None:
    job = read_job(
        path,
        [
            "generation.eos_ids=1,2",
            "generation.stop=[a, '1']",
            "generation.logprobs=true",
            "generation.temperature=1e-1",
            "parallel.rdzv_id=12",
            "parallel.log_dir=null",
            "--parallel.nproc-per-node=4",
            "cluster.kind=slurm",
            "cluster.time=30",
            'cluster.extra={"comment": "a, b"}',
            "name=1e5",
        ],
        {"model.max_seq_len": "64"},
    )
    assert isinstance(job.options.generation, CompleteSection)
    assert (job.options.generation.eos_ids, job.options.generation.stop) == ([1, 2], ["a", "1"])
    assert (job.options.generation.logprobs, job.options.generation.temperature) == (True, 0.1)
    assert (job.options.parallel.rdzv_id, job.options.parallel.log_dir) == ("12", None)
    assert (job.options.parallel.nproc_per_node, job.options.model.max_seq_len) == (4, 64)
    assert job.cluster == SlurmSection(kind="slurm", time="30", extra={"comment": "a, b"})
    assert job.name == "1e5"


def test_a_text_of_an_override_is_taken_as_it_stands(path: Path) -> None:
    path.write_text("model: {ckpt_dir: demo}\n")
    job = read_job(path, ["command=score", "generation.text=a: [b # c", "parallel.rdzv_id=&x"])
    assert getattr(job.options.generation, "text") == "a: [b # c"  # noqa: B009
    assert job.options.parallel.rdzv_id == "&x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.temprature=0", "'generation.temprature=0': 'temprature' is not a key of generation; did you mean"),
        ("generation.temperature=x", 'generation.temperature is "x"; wanted a number of 0 to 10'),
        ("generation.temperature=", 'generation.temperature is ""; wanted a number of 0 to 10'),
        ("generation.seed=012", "generation.seed is 012, which is 12 in YAML 1.2 and 10 (octal) in YAML 1.1; write 12"),
        ("generation.seed=1e5", "generation.seed is 100000.0; wanted a whole number of 0 to"),
        ("generation.stop=[a", "generation.stop is '[a': is not valid YAML: did not find expected ',' or ']'"),
        ("generation.stop=*a", "generation.stop is '*a': anchors and aliases"),
        ("generation.stop=[1]", "generation.stop[0] is 1; wanted a text; put it in quotes: '1'"),
        ("modle.ckpt_dir=x", "'modle' is not a section of a job; did you mean 'model'?"),
        ("num_beams=2", "'num_beams=2': 'num_beams' is not a section of a job; did you mean generation.num_beams=2?"),
        ("max_seqlen=2", "did you mean model.max_seq_len=2?"),
        ("nproc-per-node=2", "did you mean parallel.nproc_per_node=2?"),
        ("gpus=2", "'gpus' is not a section of a job; write parallel.nproc_per_node: RANKS OF EACH NODE"),
        ("model=x", "'model=x': model is a section; set a key of it, as model.ckpt_dir=..."),
        ("env=x", "'env=x': env is a section; set a key of it, as env.NAME=..."),
        ("env.A-B=x", "'A-B' is no name of a variable"),
        ("temperature", "'temperature' is not an override; wanted section.key=value, as generation.temperature=0"),
        ("name=a b", "name is \"a b\"; wanted 1 to 64 letters, digits, '.', '_' and '-'"),
        ("command=plan", 'command is "plan"; wanted complete, chat, infill or score'),
        ("cluster.kind=pbs", 'cluster.kind is "pbs"; wanted slurm or kubernetes'),
        ("cluster.partition=x", "cluster.kind is missing; wanted slurm or kubernetes"),
        ("model.ckpt_dir=a\0b", 'model.ckpt_dir is "a\\u0000b"; wanted a text without U+0000'),
        ("model.ckpt_dir=\udcff", "'model.ckpt_dir=\\udcff' is not UTF-8 text"),
        ("", "'' is not an override"),
        ("=", "'' is not a section of a job"),
    ],
)
def test_a_bad_override_is_refused(path: Path, override: str, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_job(path, [override])
    assert str(refused.value).replace("\\\\", "\\").startswith("the command line: ")
    assert message in str(refused.value).replace("\\\\", "\\")
    assert "\n" not in str(refused.value)


def test_an_override_that_is_given_twice_is_refused(path: Path) -> None:
    with pytest.raises(RefusedError, match=r"^the command line: 'generation.seed' is given twice; give it once$"):
        read_job(path, ["generation.seed=1"], {"generation.seed": "1"})


WORDS = "model generation cluster env kind command seed extra name . = -- @ [ '"
PARTS = st.sampled_from(WORDS.split())


@given(st.lists(st.lists(PARTS | st.text(max_size=3), max_size=6).map("".join) | st.text(), max_size=4))
def test_any_override_is_taken_or_refused_with_a_line_for_each(tmp_path_factory: Any, overrides: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "job.yaml"
    path.write_text(GOOD)
    lines = ["the command line: "]
    try:
        read_job(path, overrides)
    except RefusedError as refused:
        lines = str(refused).split("\n")
    assert all(line.startswith(("the command line: ", str(path))) for line in lines)


def test_an_override_mends_what_is_wrong_in_the_file(path: Path) -> None:
    path.write_text("command: chatt\nmodel: {ckpt_dir: 5}\ngeneration: {prompts: [Once], temperature: hot}\n")
    job = read_job(path, ["generation.temperature=0", "model.ckpt_dir=x", "command=complete"])
    assert job.options.generation.temperature == 0.0
