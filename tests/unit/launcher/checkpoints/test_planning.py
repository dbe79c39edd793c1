"""`plan`: what it reads, what it assumes, what it refuses, what it prints."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.amounts import human
from launcher.checkpoints.plan_report import as_json, as_text
from launcher.checkpoints.plan_source import read_source
from launcher.checkpoints.planning import make_report, parse_memory, plan_command, possible_sizes
from launcher.settings.options import PlanOptions
from parallel.environment import Environment
from parallel.errors import RefusedError
from tests.unit.model.conftest import write_folder

ROOT = Path(__file__).resolve().parents[4]
SEVENTY_B = {
    "dim": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "n_kv_heads": 8,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "vocab_size": -1,
}
LLAMA_3 = {"dim": 64, "n_layers": 2, "n_heads": 8, "rope_theta": 500000.0, "vocab_size": -1}


def params_file(folder: Path, **raw: Any) -> Path:
    path = folder / "params.json"
    path.write_text(json.dumps(raw))
    return path


def printed(capfdbinary: pytest.CaptureFixture[bytes], *words: str, **flags: str) -> str:
    assert plan_command(words, flags, Environment()) == 0
    return capfdbinary.readouterr().out.decode()


def refusal(*words: str, env: Environment | None = None, **flags: str) -> str:
    with pytest.raises(RefusedError) as refused:
        plan_command(words, flags, env or Environment())
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("80", 80_000_000_000),
        ("80GB", 80_000_000_000),
        ("80 GB", 80_000_000_000),
        ("80GiB", 80 * 2**30),
        ("0.5", 500_000_000),
        ("500MB", 500_000_000),
        ("1MiB", 2**20),
    ],
)
def test_memory_of_a_gpu_is_read_with_its_unit(text: str, nbytes: int) -> None:
    assert parse_memory(text) == nbytes


@pytest.mark.parametrize("text", ["0", "-1", "80gb", "80 TB", "eighty", "1e3", "nan", "0.0000000001GB", ""])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_memory(text)
    assert str(refused.value).startswith(f"--gpu_memory is {text!r}; wanted a number of GB above 0")


def test_sizes_alone_are_enough_and_what_is_assumed_is_told(tmp_path: Path) -> None:
    source = read_source(params_file(tmp_path, **SEVENTY_B), PlanOptions())
    assert (source.params.vocab_size, source.stored, source.embedding_dim) == (32000, "bfloat16", 1)
    assert (source.shards, source.checkpoint) == (None, None)
    told = " ".join(source.assumed)
    for word in ("vocabulary 32000", "--vocab_size", "bfloat16", "--dtype", "the width"):
        assert word in told


def test_a_folder_that_holds_only_sizes_is_as_its_file(tmp_path: Path) -> None:
    file = params_file(tmp_path, **SEVENTY_B)
    assert read_source(tmp_path, PlanOptions()) == read_source(file, PlanOptions())


def test_a_rotary_base_of_llama_3_stands_for_its_vocabulary(tmp_path: Path) -> None:
    source = read_source(params_file(tmp_path, **LLAMA_3), PlanOptions())
    assert (source.params.vocab_size, source.embedding_dim) == (128256, 0)


def test_flags_stand_in_place_of_what_is_assumed(tmp_path: Path) -> None:
    file = params_file(tmp_path, **SEVENTY_B)
    source = read_source(file, PlanOptions(vocab_size=32016, dtype="float16"))
    assert (source.params.vocab_size, source.stored) == (32016, "float16")
    said = read_source(params_file(tmp_path, **{**SEVENTY_B, "vocab_size": 32000}), PlanOptions(vocab_size=40000))
    assert said.params.vocab_size == 40000
    assert "vocabulary 40000, as --vocab_size; the file says 32000" in said.assumed


def test_a_hugging_face_config_says_its_vocabulary_and_dtype(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 96,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for place in (tmp_path, tmp_path / "config.json"):
        source = read_source(place, PlanOptions())
        assert (source.params.vocab_size, source.params.ffn_dim, source.stored) == (96, 128, "float16")


def test_a_checkpoint_says_its_vocabulary_dtype_and_shards(tmp_path: Path) -> None:
    source = read_source(write_folder(tmp_path / "ckpt", mp=2), PlanOptions())
    assert (source.params.vocab_size, source.stored, source.shards) == (24, "float32", 2)
    report = make_report(source, PlanOptions(gpu_memory="80"))
    assert report.chosen.plan.mp == 2
    assert report.work.dtype == "float32"


def test_where_files_do_not_say_the_fewest_ranks_that_fit_are_planned(tmp_path: Path) -> None:
    source = read_source(params_file(tmp_path, **SEVENTY_B), PlanOptions())
    # 138 GB of weights.
    assert make_report(source, PlanOptions(gpu_memory="200")).chosen.plan.mp == 1
    assert make_report(source, PlanOptions(gpu_memory="80")).chosen.plan.mp == 2
    report = make_report(source, PlanOptions(gpu_memory="40GiB"))
    assert report.chosen.plan.mp == 4
    assert report.fitting == list(range(4, 65))
    nothing = make_report(source, PlanOptions(gpu_memory="1GB"))
    assert (nothing.chosen.plan.mp, nothing.chosen.fits, nothing.fitting) == (1, False, [])


def test_the_table_lists_even_sizes_and_powers_of_two_or_all(tmp_path: Path) -> None:
    source = read_source(params_file(tmp_path, **SEVENTY_B), PlanOptions())

    def listed(**options: Any) -> list[int]:
        return [row.plan.mp for row in make_report(source, PlanOptions(gpu_memory="80", **options)).rows]

    assert listed() == [1, 2, 4, 8, 16, 32, 64]
    assert listed(mp=3) == [1, 2, 3, 4, 8, 16, 32, 64]
    assert listed(all=True) == list(range(1, 65)) == possible_sizes(source.params)


def test_the_report_is_read_by_people(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = printed(capfdbinary, str(params_file(tmp_path, **SEVENTY_B)), mp="16", gpu_memory="80")
    assert "68.98 billion parameters" in text
    assert "KV cache 320 KiB a token" in text
    assert "163 collectives" in text
    assert "assumed, not measured" in text
    assert re.search(r"\n  ranks 0-15 +4 +1 +8\.79 GB ", text)
    assert re.search(r"\n  16 +even, KV x2 +8\.79 GB .* yes ", text)
    assert "fits: 10.5 GB on each of 16 GPUs, of 80 GB each (--gpu_memory 80)" in text
    # A terminal's height, the two tables apart.
    assert text.partition("by MP size")[0].count("\n") < 30
    assert text.count("\n") < 65
    assert max(map(len, text.splitlines())) < 160


def test_an_uneven_cut_names_its_fullest_rank(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = printed(capfdbinary, str(params_file(tmp_path, **SEVENTY_B)), mp="3", gpu_memory="80")
    assert re.search(r"\n  rank 0 \(fullest\) +24 +3 +47 GB", text)
    assert re.search(r"\n  rank 2 +16 +2 +44 GB", text)
    assert re.search(r"\n  3 +uneven ", text)


def test_json_is_one_object_with_the_numbers_of_every_rank(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = printed(
        capfdbinary, str(params_file(tmp_path, **SEVENTY_B)), mp="8", gpu_memory="80", json="True", max_batch_size="1"
    )
    assert text.count("\n") == 1
    plan = json.loads(text)
    assert (plan["mp"], plan["fits"], plan["dtype"], plan["device"]) == (8, True, "bfloat16", "cuda")
    assert len(plan["ranks"]) == 8
    rank = plan["ranks"][plan["fullest_rank"]]
    parts = ("weights_bytes", "kv_cache_bytes", "workspace_bytes", "reserve_bytes")
    assert rank["total_bytes"] == sum(rank[part] for part in parts)
    # 320 KiB a token over 8 ranks; 512 tokens and one place more.
    assert rank["kv_cache_bytes"] == 40 * 1024 * 513
    assert plan["collectives_per_token"]["count"] == 163
    assert [row["mp"] for row in plan["mp_sizes"]] == [1, 2, 4, 8, 16, 32, 64]
    assert plan["mp_that_fit"] == list(range(2, 65))
    assert plan["room"]["bytes"] == 80_000_000_000


def test_the_batch_and_the_rows_that_fit_are_those_that_the_next_plan_accepts(tmp_path: Path) -> None:
    source = read_source(params_file(tmp_path, **SEVENTY_B), PlanOptions())
    first = make_report(source, PlanOptions(gpu_memory="80", mp=2)).chosen
    for changes in ({"max_batch_size": first.largest_batch}, {"max_seq_len": first.longest_sequence}):
        for more, fits in ((0, True), (1, False)):
            changed = {name: value + more for name, value in changes.items()}
            assert make_report(source, PlanOptions(gpu_memory="80", mp=2, **changed)).chosen.fits is fits


def test_on_a_cpu_the_memory_of_the_host_counts(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    folder = write_folder(tmp_path / "ckpt", mp=2)
    text = printed(capfdbinary, str(folder), device="cpu")
    assert "memory of each process on the CPU" in text
    assert "available on this host" in text
    assert "0 B of" in text, "float32 weights stay in their files"
    assert "shared memory" in text


def test_the_times_are_a_table_by_size_and_link_with_their_constants(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = str(params_file(tmp_path, **SEVENTY_B))
    text = printed(capfdbinary, file, gpu_memory="141").partition("about how fast")[2]
    assert "tokens/s of rows of 512 tokens, and a prefill of one such row" in text
    for said in ("a model, not a measurement", "not checked on a GPU", "H200: 85% of 4800 GB/s", "data sheet"):
        assert said in text
    assert re.search(r"\n  1 +- +\d", text)
    listed = [(int(mp), link) for mp, link in re.findall(r"\n  (\d+) +(NCCL|InfiniBand|Ethernet)", text)]
    assert listed == [(mp, link) for mp in (2, 4, 8, 16) for link in ("NCCL", "InfiniBand", "Ethernet")]
    rows = json.loads(printed(capfdbinary, file, gpu_memory="141", json="True"))["times"]["rows"]
    assert [(row["mp"], (row["link"] or "").split(",")[0].split()[:1]) for row in rows] == [
        (1, []),
        *((mp, [link]) for mp, link in listed),
    ]
    for row in rows:
        rates = [f"{step['tokens_per_s']:.3g}" for step in row["decode"]]
        if row["decode"][0]["tokens_per_s"] < 100:
            assert re.search(rf"\n  {row['mp']} .* {re.escape(rates[0])} +{row['decode'][0]['limit']} ", text)
        assert [step["batch_size"] for step in row["decode"]] == [1, 8]
        assert row["prefill"]["tokens"] == 512


def test_the_times_on_a_cpu_are_of_as_many_ranks_as_it_was_looked_at_with(tmp_path: Path) -> None:
    options = PlanOptions(device="cpu")
    report = make_report(read_source(params_file(tmp_path, **SEVENTY_B), options), options)
    times = json.loads(as_json(report))["times"]
    assert [row["mp"] for row in times["rows"] if row["link"] == "shared memory"] == [2]
    assert "not on other CPUs" in times["checked"] and times["checked"] in as_text(report)


def test_refusals_say_what_was_wanted(tmp_path: Path) -> None:
    file = params_file(tmp_path, **SEVENTY_B)
    assert "was given 0" in refusal()
    assert "was given 2" in refusal("a", "b")
    assert refusal(str(tmp_path / "none")).endswith("does not exist; wanted a checkpoint folder, or a params.json")
    assert "does not exist" in refusal(str(tmp_path / "none.json"))
    (tmp_path / "notes.txt").write_text("x")
    assert "is neither a folder nor a .json file" in refusal(str(tmp_path / "notes.txt"))
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(str(tmp_path / "empty"))
    assert "cannot cut 64 heads over 65 ranks" in refusal(str(file), mp="65")
    assert "--mp is '0'; wanted a whole number of 1 to 1024" in refusal(str(file), mp="0")
    assert "--mpp is not a flag of plan; did you mean 'mp'?" in refusal(str(file), mpp="2")
    assert "--dtype is 'fp8'; wanted auto, float32, bfloat16 or float16" in refusal(str(file), dtype="fp8")
    assert "contradict each other" in refusal(str(file), gpu_memory="80", device="cpu")
    assert "one process" in refusal(str(file), env=Environment(world_size=2, launched=True))
    folder = write_folder(tmp_path / "ckpt")
    assert "have 24 entries; leave it out" in refusal(str(folder), vocab_size="25")


def test_a_gpu_that_is_not_there_is_refused_with_what_to_say(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "say how much memory one has, as --gpu_memory 80" in refusal(
        str(params_file(tmp_path, **SEVENTY_B)), device="cuda"
    )


@pytest.mark.parametrize("flags", [{"gpu_memory": "80"}, {"device": "cpu"}])
def test_a_plan_does_not_wait_for_torch(flags: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from launcher.checkpoints.planning import plan_command\n"
        "from parallel.environment import Environment\n"
        f"plan_command(['{params_file(tmp_path, **SEVENTY_B)}'], {flags}, Environment())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (13_476_839_424, "13.5 GB"), (999_700_000, "1000 MB"), (2e12, "2 TB")],
)
def test_bytes_are_shown_in_three_digits(nbytes: float, shown: str) -> None:
    assert human(nbytes) == shown


def test_every_row_of_the_table_says_what_its_json_says(tmp_path: Path) -> None:
    source = read_source(params_file(tmp_path, **SEVENTY_B), PlanOptions())
    report = make_report(source, PlanOptions(gpu_memory="80", all=True))
    text, rows = as_text(report), json.loads(as_json(report))["mp_sizes"]
    for row in rows:
        verdict = "yes" if row["fits"] else "no"
        assert re.search(rf"\n  {row['mp']} +{re.escape(row['cut'])} +.* {human(row['total_bytes'])} +{verdict} ", text)
