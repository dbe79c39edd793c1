"""Job files: sections, overrides, paths, and every error of a file at once."""

from pathlib import Path

import pytest

from launcher.settings.cluster_options import KubernetesSection, SlurmSection
from launcher.settings.job import read_job
from launcher.settings.options import ChatSection, ScoreSection
from parallel import RefusedError

ROOT = Path(__file__).resolve().parents[4]
SECTIONS = {
    "model": "model: {ckpt_dir: demo}\n",
    "parallel": "parallel: {}\n",
    "generation": "generation: {prompts: [Once]}\n",
    "cluster": "cluster: {kind: slurm}\n",
}
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
    assert job.options.model.ckpt_dir == str(Path.cwd() / "other")
    assert job.options.generation.prompts == ["a", "b"]
    assert (job.name, job.options.generation.seed) == ("x", 7)


def test_every_error_of_a_file_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model:\n  ckpt_dir: 5\n  max_seqlen: 12\nparalel: {}\ngeneration:\n  prompts: [a, 1, [b]]\n"
        "  temperature: hot\n"
        "  stream: yes\nname: !x a\nenv: {A: 1, A: b}\ncommand: chatt\ncluster: {kind: pbs, partitin: x}\n",
    )
    assert refusal(path, "model.dtype=int8", "generation.seed=7", "seed=7").splitlines() == [
        f"{path}:2:13: model.ckpt_dir is 5; wanted a text; put it in quotes: '5'",
        f"{path}:3:3: 'max_seqlen' is not a key of model; did you mean 'max_seq_len'?",
        f"{path}:4:1: 'paralel' is not a section of a job; did you mean 'parallel'?",
        f"{path}:6:16: generation.prompts[1] is 1; wanted a text; put it in quotes: '1'",
        f'{path}:6:19: generation.prompts[2] is ["b"]; wanted a text',
        f'{path}:7:16: generation.temperature is "hot"; wanted a number of 0 to 10',
        f'{path}:8:11: generation.stream is "yes"; wanted true or false; yes is a text in YAML 1.2: write true',
        f"{path}:9:7: the tag !x is not used in job files; write a plain value",
        f"{path}:10:10: env.A is 1; wanted a text; put it in quotes: '1'",
        f"{path}:10:13: the key 'A' is given twice (first on line 10); keep one",
        f"{path}:11:10: command is \"chatt\"; wanted complete, chat, infill or score; did you mean 'chat'?",
        f'{path}:12:17: cluster.kind is "pbs"; wanted slurm or kubernetes',
        f"{path}:12:22: 'partitin' is not a key of cluster; did you mean 'partition'?",
        "the command line: 'seed=7': 'seed' is not a section of a job; did you mean generation.seed=7?",
        'the command line: model.dtype is "int8"; wanted auto, float32, bfloat16 or float16',
    ]


def test_of_very_many_errors_the_first_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "".join(f"key{number}: 1\n" for number in range(1000)))
    lines = refusal(path).splitlines()
    assert len(lines) == 31
    assert lines[0].startswith(f"{path}:5:1: 'key0' is not a section of a job; there are name, command")
    assert lines[-1] == f"{path}: and 970 more"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {ckpt_dir: demo}\n")
    assert refusal(path) == (
        f"{path}:1:1: generation.prompts is missing; wanted: JSON list of texts, or @FILE.txt (one a line), or "
        '@FILE.jsonl ({"prompt": ...} a line)'
    )


@pytest.mark.parametrize("text", ["hello", "- 1", "5"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "wanted keys and sections, as name: demo, and model: with ckpt_dir: below it" in refusal(
        write(tmp_path, text)
    )


def test_a_job_that_says_no_name_has_its_files(tmp_path: Path) -> None:
    path = tmp_path / "..my jöb; rm -r $HOME.yaml"
    path.write_text(GOOD)
    assert read_job(path).name == "my-j-b--rm--r--HOME"


@pytest.mark.parametrize("name", ["a b", "''", "../x", "-x", "..", "a;b", '"a\\nb"', "$(x)", "x" * 65, "12", "yes!"])
def test_a_name_has_letters_that_are_safe_everywhere(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, GOOD + f"name: {name}\n")
    assert refusal(path).startswith(f"{path}:5:7: name is ")
    assert "wanted 1 to 64 letters, digits, '.', '_' and '-', the first no '.' or '-'" in refusal(path)


def test_workdir_and_env_are_read(tmp_path: Path) -> None:
    job = read_job(
        write(tmp_path, GOOD + "workdir: run\nenv: {NCCL_DEBUG: INFO, EMPTY: '', no: 'on'}\n"), ["env.A=b=c"]
    )
    assert job.workdir == f"{tmp_path}/run"
    assert job.env == {"NCCL_DEBUG": "INFO", "EMPTY": "", "no": "on", "A": "b=c"}
    assert read_job(write(tmp_path, GOOD), ["workdir=run"]).workdir == f"{Path.cwd()}/run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: {A: yes, B: true}", "6:18: env.B is true; wanted a text; put it in quotes: 'true'"),
        ("env: {A: 1.50}", "6:10: env.A is 1.5; wanted a text; put it in quotes: '1.50'"),
        ("env: {A: }", "6:10: env.A is null; wanted a text"),
        ("env: {A: [1]}", "6:10: env.A is [1]; wanted a text"),
        ('env: {A: "a\\nb"}', '6:10: env.A is "a\\nb"; wanted one line, without NUL'),
        ('env: {A: "\\0"}', '6:10: env.A is "\\u0000"; wanted one line, without NUL'),
        ("env: {1A: x}", "6:7: '1A' is no name of a variable; wanted letters, digits and '_', the first no digit"),
        ("env: {A-B: x}", "6:7: 'A-B' is no name of a variable"),
        ("env: {LD.SO: x}", "6:7: 'LD.SO' is no name of a variable"),
        ("env: {RANK: '1'}", "6:7: env.RANK is set by the launcher, for each rank; leave it out"),
        ("env: {MASTER_ADDR: h}", "6:7: env.MASTER_ADDR is set by the launcher"),
        ("env: [A=b]", "6:6: env is [\"A=b\"]; wanted variables by name, as {NCCL_DEBUG: 'INFO'}"),
        ("workdir: 7", "6:10: workdir is 7; wanted a folder; put it in quotes: '7'"),
        ("workdir: [a]", '6:10: workdir is ["a"]; wanted a folder'),
        ('workdir: "a\\0b"', '6:10: workdir is "a\\u0000b"; wanted a folder'),
    ],
)
def test_a_wrong_workdir_or_variable_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, f"{GOOD}name: x\n{text}\n")
    assert refusal(path).startswith(f"{path}:{message}")


def test_the_kind_of_cluster_decides_which_keys_it_has(tmp_path: Path) -> None:
    slurm = read_job(write(tmp_path, GOOD + "cluster: {kind: slurm, time: 12:30:00, output: here/job.log}\n")).cluster
    assert slurm == SlurmSection(kind="slurm", time="12:30:00", output=f"{tmp_path}/here/job.log")
    path = write(tmp_path, GOOD + "cluster: {kind: slurm, image: x}\n")
    assert (
        refusal(path)
        == f"{path}:5:24: 'image' is not a key of cluster; it is a key of cluster where kind is kubernetes"
    )
    kubernetes = read_job(path, ["cluster.kind=kubernetes", "cluster.namespace=null"]).cluster
    assert kubernetes == KubernetesSection(kind="kubernetes", image="x")
    path = write(tmp_path, GOOD + "cluster: {partition: x}\n")
    assert refusal(path) == f"{path}:5:1: cluster.kind is missing; wanted slurm or kubernetes"
    assert read_job(write(tmp_path, GOOD + "cluster:\n")).cluster is None


@pytest.mark.parametrize("section", ["model", "parallel", "generation", "cluster"])
def test_a_section_that_is_no_mapping_is_refused_once(tmp_path: Path, section: str) -> None:
    text = "".join(f"{name}: [x]\n" if name == section else body for name, body in SECTIONS.items())
    message = refusal(write(tmp_path, text))
    assert f'{section} is ["x"]; wanted keys: ' in message
    assert "\n" not in message


def test_a_home_folder_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    job = read_job(write(tmp_path, GOOD.replace("demo", "~/llama")), ["parallel.log_dir=~/logs"])
    assert (job.options.model.ckpt_dir, job.options.parallel.log_dir) == ("/home/somebody/llama", "/home/somebody/logs")


def test_paths_have_no_letters_that_no_path_can_have(tmp_path: Path) -> None:
    path = write(tmp_path, 'model: {ckpt_dir: "a\\0b"}\ngeneration: {prompts: "@a\\nb"}\n')
    assert refusal(path).splitlines() == [
        f'{path}:1:19: model.ckpt_dir is "a\\u0000b"; wanted a text without U+0000',
        f'{path}:2:23: generation.prompts is "@a\\nb"; wanted a text without U+000A',
    ]


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
