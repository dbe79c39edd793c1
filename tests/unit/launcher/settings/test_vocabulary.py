"""What is said of a key that is none: where it belongs, what it is called here, or what is near."""

import re

import pytest

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.options import GENERATION_SECTIONS, sections_of
from launcher.settings.schema import settings_of
from launcher.settings.vocabulary import SYNONYMS, TOP_KEYS, advice, home_of

HERE = {name: list(settings_of(kind)) for name, kind in sections_of("complete").items()}
EVERY_KEY = {
    *(f"generation.{key}" for kind in GENERATION_SECTIONS.values() for key in settings_of(kind)),
    *(f"cluster.{key}" for kind in CLUSTER_SECTIONS.values() for key in settings_of(kind)),
    *(f"{section}.{key}" for section, keys in HERE.items() for key in keys),
    *TOP_KEYS,
}


@pytest.mark.parametrize(
    ("key", "section", "said"),
    [
        ("max_seqlen", "model", "; did you mean 'max_seq_len'?"),
        ("CKPT-DIR", "model", "; did you mean 'ckpt_dir'?"),
        ("seed", "parallel", "; it is a key of generation"),
        ("temperature", None, "; it is a key of generation"),
        ("dialogs", "generation", "; it is a key of generation where command is chat"),
        ("suffix_first", None, "; it is a key of generation where command is infill"),
        ("image", "parallel", "; it is a key of cluster where kind is kubernetes"),
        ("gpus_per_node", "parallel", "; it is a key of cluster where kind is slurm or kubernetes"),
        ("workdir", "model", "; 'workdir' stands at the top of the file, not below model"),
        ("master_addr", "parallel", "; write parallel.rdzv_endpoint: HOST:PORT"),
        ("num_gpus", None, "; write parallel.nproc_per_node: RANKS OF EACH NODE"),
        ("model_path", "model", "; write model.ckpt_dir: FOLDER"),
        ("walltime", "parallel", "; write cluster.time: 'H:MM:SS' (Slurm), or cluster.time_s (Kubernetes)"),
        ("numbeams", "parallel", "; did you mean 'generation.num_beams'?"),
        ("<<", "model", "; write the keys out: merge keys are not used in job files"),
        ("xyzzy", "model", f"; there are {', '.join(HERE['model'])}"),
        ("x" * 1000, None, f"; there are {', '.join(TOP_KEYS)}"),
    ],
)
def test_a_wrong_key_is_told_from_what_it_may_have_been(key: str, section: str | None, said: str) -> None:
    assert advice(key, section, HERE) == said


def test_what_other_tools_call_it_leads_to_keys_that_there_are() -> None:
    for word, target in SYNONYMS.items():
        named = re.findall(r"\b(?:model|parallel|generation|cluster)\.\w+", target)
        assert set(named) <= EVERY_KEY, word
        assert named or target.split(":")[0] in TOP_KEYS or word == "<<", word


def test_no_word_of_another_tool_hides_a_key_of_ours() -> None:
    assert not set(SYNONYMS) & {key.partition(".")[2] or key for key in EVERY_KEY}


def test_a_bare_key_has_the_home_that_only_one_section_gives_it() -> None:
    assert home_of("num_beams", HERE) == "generation.num_beams"
    assert home_of("temprature", HERE) == "generation.temperature"
    assert home_of("xyzzy", HERE) is None
