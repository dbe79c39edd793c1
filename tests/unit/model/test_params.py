"""params.json: what is read, what is derived, and what a user reads when it is wrong."""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.params_json import read_params
from model.params import LLAMA_3_VOCABULARY, Params, ffn_width
from parallel.errors import RefusedError

SMALL = {"dim": 64, "n_layers": 2, "n_heads": 8}


def file_of(folder: Path, content: object) -> Path:
    path = folder / "params.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(folder: Path, **raw: Any) -> Params:
    return read_params(file_of(folder, raw))


def published(dim: int, n_layers: int, n_heads: int, **more: Any) -> dict[str, Any]:
    return {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "norm_eps": 1e-5, **more}


LLAMA_3 = {"vocab_size": LLAMA_3_VOCABULARY, "rope_theta": 500000.0, "n_kv_heads": 8}
SEVENTY_B = {"n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}
# Published params.json (the vocabulary that a -1 stands for written in), feed-forward width, 1e9 parameters.
MODELS = [
    ("Llama 1 7B", published(4096, 32, 32, vocab_size=32000), 11008, 6.738),
    ("Llama 1 13B", published(5120, 40, 40, vocab_size=32000), 13824, 13.016),
    ("Llama 1 30B", published(6656, 60, 52, vocab_size=32000), 17920, 32.529),
    ("Llama 1 65B", published(8192, 80, 64, vocab_size=32000), 22016, 65.286),
    ("Llama 2 7B", published(4096, 32, 32, vocab_size=32000, multiple_of=256), 11008, 6.738),
    ("Llama 2 13B", published(5120, 40, 40, vocab_size=32000, multiple_of=256), 13824, 13.016),
    ("Llama 2 70B", published(8192, 80, 64, vocab_size=32000, **SEVENTY_B), 28672, 68.977),
    ("Code Llama 7B", published(4096, 32, 32, vocab_size=32016, ffn_dim_multiplier=1.0), 11008, 6.739),
    ("Code Llama 13B", published(5120, 40, 40, vocab_size=32016, ffn_dim_multiplier=1.0), 13824, 13.016),
    ("Code Llama 34B", published(8192, 48, 64, vocab_size=32000, n_kv_heads=8, ffn_dim_multiplier=1.0), 22016, 33.744),
    ("Code Llama 70B", published(8192, 80, 64, vocab_size=32016, **SEVENTY_B), 28672, 68.977),
    ("Llama 3 8B", published(4096, 32, 32, multiple_of=1024, ffn_dim_multiplier=1.3, **LLAMA_3), 14336, 8.030),
    ("Llama 3 70B", published(8192, 80, 64, **{**LLAMA_3, **SEVENTY_B}), 28672, 70.554),
    (
        "Llama 3.1 405B MP8",
        published(16384, 126, 128, multiple_of=4096, ffn_dim_multiplier=1.2, **LLAMA_3),
        53248,
        405.853,
    ),
    (
        "Llama 3.1 405B MP16",
        published(16384, 126, 128, multiple_of=4096, ffn_dim_multiplier=1.2, **{**LLAMA_3, "n_kv_heads": 16}),
        53248,
        410.081,
    ),
    ("Llama 3.2 1B", published(2048, 16, 32, multiple_of=256, ffn_dim_multiplier=1.5, **LLAMA_3), 8192, 1.498),
    ("Llama 3.2 3B", published(3072, 28, 24, multiple_of=256, ffn_dim_multiplier=1.0, **LLAMA_3), 8192, 3.607),
]


@pytest.mark.parametrize(("raw", "ffn", "billions"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_every_published_model_has_its_width_and_its_number_of_parameters(
    tmp_path: Path, raw: dict[str, Any], ffn: int, billions: float
) -> None:
    params = read(tmp_path, **raw)
    assert params.ffn_dim == ffn
    # The table gives three decimals.
    assert round(params.n_parameters / 1e9, 3) == billions


def test_the_width_is_rounded_down_before_and_up_after_the_multiplier() -> None:
    # 2 * 4 * 4096 / 3 = 10922.67; 1.3 * 10922 = 14198.6; the next multiple of 1024 is 14336.
    assert ffn_width(4096, 1024, 1.3) == 14336
    assert ffn_width(288, 32, None) == 768
    assert ffn_width(64, 4, None) == 172
    # A multiplier of 1 leaves a width that is a multiple already as it is: 2 * 4 * 3072 / 3 = 8192.
    assert ffn_width(3072, 256, 1.0) == 8192


def test_a_file_of_llama_1_has_the_defaults_of_its_generation(tmp_path: Path) -> None:
    params = read(tmp_path, **SMALL)
    assert (params.n_kv_heads, params.vocab_size, params.norm_eps) == (8, -1, 1e-5)
    assert (params.rope_theta, params.rope_scaling, params.head_dim) == (10000.0, None, 8)
    assert params.ffn_dim == 256


def test_null_stands_for_an_absent_number_of_kv_heads_and_multiplier(tmp_path: Path) -> None:
    params = read(tmp_path, **SMALL, n_kv_heads=None, ffn_dim_multiplier=None)
    assert (params.n_kv_heads, params.ffn_dim) == (8, 256)


@pytest.mark.parametrize(
    ("raw", "theta", "words"),
    [
        ({}, 10000.0, "absent, as in Llama 1 and 2"),
        ({"vocab_size": 32000}, 10000.0, "absent, as in Llama 1 and 2"),
        ({"vocab_size": 128256}, 500000.0, "absent, and a vocabulary of 128256 is Llama 3's"),
        ({"vocab_size": 128256, "rope_theta": 10000}, 10000.0, "from params.json"),
        ({"vocab_size": 32016, "rope_theta": 1e6}, 1e6, "from params.json"),
    ],
)
def test_the_rotary_base_is_the_files_or_else_the_vocabularys(
    tmp_path: Path, raw: dict[str, Any], theta: float, words: str
) -> None:
    params = read(tmp_path, **SMALL, **raw)
    assert params.rope_theta == theta
    assert words in params.rope_reason


def test_a_vocabulary_of_llama_3_found_later_gives_llama_3s_rotary_base(tmp_path: Path) -> None:
    """With vocab_size -1 only the rows of output.weight tell."""
    params = read(tmp_path, **SMALL, vocab_size=-1).with_vocab_size(128256)
    assert (params.vocab_size, params.rope_theta) == (128256, 500000.0)
    assert "Llama 3's" in params.rope_reason


def test_a_vocabulary_of_llama_3_found_later_leaves_the_files_own_base(tmp_path: Path) -> None:
    params = read(tmp_path, **SMALL, vocab_size=-1, rope_theta=10000.0).with_vocab_size(128256)
    assert params.rope_theta == 10000.0


@pytest.mark.parametrize(
    ("raw", "factor", "words"),
    [
        ({"dim": 4096, "n_heads": 32, "vocab_size": 128256}, 8.0, "Llama 3.1's"),
        ({"dim": 8192, "n_heads": 64, "vocab_size": 128256}, 8.0, "Llama 3.1's"),
        ({"dim": 2048, "n_heads": 32, "vocab_size": 128256}, 32.0, "Llama 3.2's"),
        ({"dim": 3072, "n_heads": 24, "vocab_size": 128256}, 32.0, "Llama 3.2's"),
        ({"dim": 2048, "n_heads": 32, "vocab_size": 32000}, 8.0, "Llama 3.1's"),
        ({"dim": 2048, "n_heads": 32, "vocab_size": 128256, "rope_scaling_factor": 8}, 8.0, "from params.json"),
        ({"dim": 4096, "n_heads": 32, "vocab_size": 128256, "rope_scaling_factor": 4.5}, 4.5, "from params.json"),
    ],
)
def test_the_rotary_scaling_is_8_and_32_for_llama_3_2_and_can_be_overridden(
    tmp_path: Path, raw: dict[str, Any], factor: float, words: str
) -> None:
    params = read(tmp_path, **raw, n_layers=1, rope_theta=500000.0, use_scaled_rope=True)
    assert params.rope_scaling is not None
    assert params.rope_scaling.factor == factor
    scaling = params.rope_scaling
    assert (scaling.low_freq_factor, scaling.high_freq_factor, scaling.old_context_tokens) == (1, 4, 8192)
    assert f"scaled by {factor:g}" in params.rope_reason
    assert words in params.rope_reason


def test_nothing_is_scaled_where_the_file_does_not_say_so(tmp_path: Path) -> None:
    llama_3 = {"dim": 4096, "n_heads": 32, "n_layers": 1, "vocab_size": 128256}
    assert read(tmp_path, **llama_3).rope_scaling is None
    assert read(tmp_path, **llama_3, use_scaled_rope=False).rope_scaling is None


def test_run_time_sizes_in_the_file_are_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, **SMALL, max_seq_len=4096, max_batch_size=1) == read(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({**SMALL, "dim": -64}, "dim is -64; wanted a whole number of 1 to 1048576"),
        ({**SMALL, "dim": 10**7}, "dim is 10000000; wanted a whole number of 1 to 1048576"),
        ({**SMALL, "dim": "64"}, 'dim is "64"; wanted a whole number'),
        ({**SMALL, "dim": 64.5}, "dim is 64.5; wanted a whole number"),
        ({**SMALL, "dim": True}, "dim is true; wanted a whole number"),
        ({**SMALL, "dim": None}, "dim is null; wanted a whole number"),
        ({**SMALL, "n_heads": 0}, "n_heads is 0; wanted a whole number of 1 to 65536"),
        ({**SMALL, "n_layers": 0}, "n_layers is 0; wanted a whole number of 1 to 4096"),
        ({**SMALL, "n_kv_heads": 0}, "n_kv_heads is 0; wanted a whole number"),
        ({**SMALL, "n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=8"),
        ({**SMALL, "n_kv_heads": 16}, "n_kv_heads=16 does not divide n_heads=8"),
        ({**SMALL, "n_heads": 7}, "dim=64 over n_heads=7 gives 9.14286 numbers a head; wanted a whole, even number"),
        ({**SMALL, "n_heads": 64}, "dim=64 over n_heads=64 gives 1 numbers a head; wanted a whole, even number"),
        ({**SMALL, "vocab_size": 0}, "vocab_size is 0; wanted a positive number, or -1 for the tokenizer's size"),
        ({**SMALL, "vocab_size": -2}, "vocab_size is -2; wanted a whole number of -1 to 16777216"),
        ({**SMALL, "norm_eps": -1e-5}, "norm_eps is -1e-05; wanted a finite number of 1e-20 to 1"),
        ({**SMALL, "norm_eps": 0}, "norm_eps is 0; wanted a finite number of 1e-20 to 1"),
        ({**SMALL, "norm_eps": float("nan")}, "norm_eps is NaN; wanted a finite number of 1e-20 to 1"),
        ({**SMALL, "rope_theta": float("inf")}, "rope_theta is Infinity; wanted a finite number of 1 to 1000000000000"),
        ({**SMALL, "rope_theta": "1e6"}, 'rope_theta is "1e6"; wanted a finite number of 1 to 1000000000000'),
        ({**SMALL, "use_scaled_rope": 1}, "use_scaled_rope is 1; wanted true or false"),
        ({**SMALL, "multiple_of": 0}, "multiple_of is 0; wanted a whole number"),
        ({**SMALL, "ffn_dim_multiplier": -1.3}, "ffn_dim_multiplier is -1.3; wanted a finite number"),
        ({**SMALL, "max_seq_len": "long"}, 'max_seq_len is "long"; wanted a whole number'),
        ({"dim": 64, "n_heads": 8}, "key 'n_layers' is missing; wanted a whole number"),
        ({}, "key 'dim' is missing; wanted a whole number"),
        ({**SMALL, "n_head": 8}, "unknown key 'n_head'; did you mean 'n_heads'?"),
        ({**SMALL, "rope_thetta": 1.0}, "unknown key 'rope_thetta'; did you mean 'rope_theta'?"),
        ({**SMALL, "quantization": 8}, "unknown key 'quantization'; known keys: dim, n_layers, n_heads"),
        ([SMALL], 'holds a list; an object such as {"dim": 4096, ...} is expected'),
        (7, "holds a number; an object"),
        (None, "holds null; an object"),
    ],
)
def test_a_wrong_value_is_refused_with_the_file_the_key_and_what_was_wanted(
    tmp_path: Path, raw: object, text: str
) -> None:
    path = file_of(tmp_path, raw)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: {text}")):
        read_params(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dim": 64,\n "n_heads" 8}', ":2:12: is not valid JSON: "),
        ("", ":1:1: is not valid JSON: "),
        ('{"dim": 64', ":1:11: is not valid JSON: "),
        ("[" * 100_000, ": is not valid JSON: nested too deeply"),
        ("<!DOCTYPE html><html>404</html>", ": is a web page, not JSON (an error page saved by a download?)"),
        ("\n <html><body>Access denied", ": is a web page, not JSON"),
        ('<?xml version="1.0"?><Error/>', ": is a web page, not JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ": is a Git LFS pointer, not the file"),
    ],
)
def test_a_file_that_is_no_json_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = file_of(tmp_path, text)
    with pytest.raises(RefusedError, match=re.escape(f"{path}{message}")):
        read_params(path)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f'{{"dim": {"1" * 5000}, "n_layers": 1, "n_heads": 1}}', id="a whole number of 5000 digits"),
        pytest.param(json.dumps({**SMALL, "rope_theta": 10**400}), id="a base beyond every float"),
        pytest.param(json.dumps({**SMALL, "norm_eps": 10**400}), id="an eps beyond every float"),
        pytest.param(json.dumps({**SMALL, "ffn_dim_multiplier": 1e308}), id="a width beyond every float"),
        pytest.param(json.dumps({**SMALL, "ffn_dim_multiplier": 1e-300}), id="a width of nothing"),
    ],
)
def test_numbers_that_no_machine_holds_are_refused(tmp_path: Path, text: str) -> None:
    path = file_of(tmp_path, text)
    with pytest.raises(RefusedError, match=re.escape(str(path))):
        read_params(path)


def test_a_missing_file_a_folder_and_foreign_bytes_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="does not exist; a Meta checkpoint folder holds params"):
        read_params(tmp_path / "params.json")
    (tmp_path / "params.json").mkdir()
    with pytest.raises(RefusedError, match=r"params\.json: "):
        read_params(tmp_path / "params.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{}")
    with pytest.raises(RefusedError, match=r"binary\.json: is not UTF-8 text \(byte 0\)"):
        read_params(binary)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    os.mkfifo(path)

    # Whoever opens the pipe meets this writer, and reads nothing instead of waiting for ever.
    writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)), daemon=True)
    writer.start()
    try:
        with pytest.raises(RefusedError, match="is not a regular file"):
            read_params(path)
    finally:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer.join(5)
        os.close(reader)
