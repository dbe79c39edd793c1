"""The pickle reader: what torch.save writes is understood, everything else is refused, and nothing is run."""

import builtins
import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.checkpoint.pickle_reader import OddTensor, PickledStorage, PickledTensor, UnsafePickle, read_pickle

quick = settings(max_examples=400, deadline=None, database=None)
PROTO = b"\x80\x02"


def pickle_of(value: object) -> bytes:
    """The data.pkl that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def tensor_of(dtype: str, shape: tuple[int, ...], key: str = "0") -> PickledTensor:
    numel = int(torch.Size(shape).numel())
    return PickledTensor(PickledStorage(dtype, key, numel), 0, shape, torch.empty(shape, device="meta").stride())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int8", "uint8", "bool"])
def test_a_dictionary_of_tensors_is_read_as_their_forms(dtype: str) -> None:
    found = read_pickle(pickle_of({"a.weight": torch.zeros(3, 4, dtype=getattr(torch, dtype))}))
    assert found == {"a.weight": tensor_of(dtype, (3, 4))}


def test_a_state_dict_with_its_metadata_is_read() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    state = module.state_dict()
    assert isinstance(state, collections.OrderedDict) and state._metadata
    found = read_pickle(pickle_of(state))
    assert list(found) == list(state)
    assert [tensor.shape for tensor in found.values()] == [tuple(tensor.shape) for tensor in state.values()]


def test_parameters_are_read_as_their_tensors() -> None:
    assert read_pickle(pickle_of({"w": nn.Parameter(torch.zeros(2, 2))})) == {"w": tensor_of("float32", (2, 2))}


def test_tensors_of_one_storage_share_it() -> None:
    base = torch.zeros(6, 4)
    found = read_pickle(pickle_of({"whole": base, "part": base[2:4], "turned": base.T}))
    storage = PickledStorage("float32", "0", 24)
    assert found["whole"] == PickledTensor(storage, 0, (6, 4), (4, 1))
    assert found["part"] == PickledTensor(storage, 8, (2, 4), (4, 1))
    assert found["turned"] == PickledTensor(storage, 0, (4, 6), (1, 4))


def test_nesting_numbers_texts_and_sizes_are_read_as_they_are() -> None:
    value = {"model": {"a": torch.zeros(1)}, "step": 7, "big": 2**40, "lr": 0.5, "on": True, "none": None}
    found = read_pickle(pickle_of({**value, "list": [1, "two", (3, 4, 5, 6)], "size": torch.Size([2, 3])}))
    assert found == {
        **value,
        "model": {"a": tensor_of("float32", (1,))},
        "list": [1, "two", (3, 4, 5, 6)],
        "size": (2, 3),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_protocols_that_torch_reads_back_are_read_and_others_refused(protocol: int) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer, pickle_protocol=protocol)
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    if protocol > 3:
        with pytest.raises(UnsafePickle, match=f"its pickle has protocol {protocol}; save it again"):
            read_pickle(data)
    else:
        assert read_pickle(data) == {"w": tensor_of("float32", (2,))}


def test_odd_kinds_of_tensor_are_named() -> None:
    found = read_pickle(pickle_of({"sparse": torch.eye(3).to_sparse(), "meta": torch.zeros(2, device="meta")}))
    assert found == {
        "sparse": OddTensor("a sparse tensor"),
        "meta": OddTensor("a meta tensor (a shape without data)"),
    }


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        # Protocol 2 writes the module names of Python 2.
        (Calls(os.system, "touch run"), r"posix\.system"),
        (Calls(builtins.eval, "open('run', 'w')"), r"(builtins|__builtin__)\.eval"),
        (Calls(getattr, [], "append"), r"(builtins|__builtin__)\.getattr"),
        (Calls(subprocess.Popen, ["touch", "run"]), r"(subprocess|commands)\.Popen"),
        (Calls(torch.load, "run"), r"torch\.serialization\.load"),
        (Calls(torch.hub.load, "run", "run"), r"torch\.hub\.load"),
    ],
    ids=["os.system", "eval", "getattr", "Popen", "torch.load", "torch.hub.load"],
)
def test_a_call_of_anything_else_is_refused_by_name_and_not_run(
    call: Calls, name: str, protocol: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("nothing-runs")
    monkeypatch.chdir(folder)
    with pytest.raises(UnsafePickle, match=f"its pickle asks for {name}, which loading weights does not need"):
        read_pickle(pickle.dumps({"w": call}, protocol))
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (PROTO + b"cos\nsystem\n.", "its pickle asks for os.system"),
        (PROTO + b"(S'echo'\nios\nsystem\n.", "its pickle uses the opcode"),
        (PROTO + b"(cos\nsystem\nS'echo'\no.", "its pickle"),
        (PROTO + b"S'\\o'\n.", "its pickle uses the opcode STRING"),
        (PROTO + b"\x82\x01.", "its pickle uses the opcode EXT1"),
        (PROTO + b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00bK\x02s", "its pickle"),
        (PROTO + b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.", "its pickle sets the key 'a' twice"),
        (PROTO + b"]}b.", "its pickle sets attributes on what is no state dict"),
        (PROTO + b"}}X\x03\x00\x00\x00getK\x01sb.", "its pickle sets attributes on what is no state dict"),
        (b"\x80\x01}.", "its pickle has protocol 1"),
        (PROTO + b"K\x01)R.", "its pickle calls what is no function"),
        (PROTO + b"ctorch\nFloatStorage\n)R.", "its pickle calls torch.FloatStorage"),
        (PROTO + b"h\x07.", "its pickle is damaged"),
        (PROTO + b"s.", "its pickle is damaged"),
        (PROTO, "its pickle"),
        (b"", "its pickle"),
        (b"junk", "its pickle"),
    ],
)
def test_what_no_dictionary_of_tensors_needs_is_refused_in_words(data: bytes, text: str) -> None:
    with pytest.raises(UnsafePickle, match=text.replace(".", r"\.")):
        read_pickle(data)


def refusal_of(data: bytes) -> str:
    """What a refusal says; the harmless sentence where the pickle can be read."""
    try:
        read_pickle(data)
    except UnsafePickle as error:
        return str(error)
    return "its pickle is harmless"


@quick
@given(st.binary(max_size=200))
def test_of_random_bytes_only_the_refusal_comes_out(data: bytes) -> None:
    for start in (b"", PROTO):
        assert refusal_of(start + data).startswith("its pickle")


REAL = [
    pickle_of({"a.weight": torch.zeros(3, 4), "b": nn.Parameter(torch.zeros(2)), "n": 7}),
    pickle_of(nn.Linear(2, 2).state_dict()),
    pickle.dumps({"w": Calls(os.system, "exit 1")}, 4),
]


@quick
@given(
    st.sampled_from(REAL),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2), st.binary(min_size=1, max_size=3)), max_size=4),
)
def test_of_a_pickle_with_changed_bytes_only_the_refusal_comes_out(
    data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    for place, length, new in changes:
        place %= len(data)
        data = data[:place] + new + data[place + length :]
    assert refusal_of(data).startswith("its pickle")


def repeated(depth: int) -> bytes:
    """A tuple whose text has 3^depth letters, in 5 * depth bytes."""
    return PROTO + b"X\x01\x00\x00\x00a" + b"q\x00h\x00h\x00\x87" * depth


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PROTO + b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.", id="a key nested a million times"),
        pytest.param(PROTO + b"]" * 300_000 + b"a" * 299_999 + b".", id="a list nested 300,000 times"),
        pytest.param(PROTO + b")" + b"\x85" * 1_000_000 + b".", id="a tuple nested a million times"),
        pytest.param(repeated(40) + b"X\x01\x00\x00\x00b\x93.", id="a module's name that doubles without end"),
        pytest.param(PROTO + b"}" + repeated(40)[2:] + b"Ns.", id="a key that doubles without end"),
        pytest.param(
            PROTO + b"ccollections\nOrderedDict\n]](" + repeated(40)[2:] + b"Nea\x85R.", id="a pair that does the same"
        ),
    ],
)
def test_a_pickle_made_to_exhaust_the_reader_ends_at_once(data: bytes) -> None:
    """In a process of its own: such pickles can end an interpreter, not only raise."""
    script = (
        "import sys\n"
        "from model.checkpoint.pickle_reader import UnsafePickle, read_pickle\n"
        "try:\n    read_pickle(sys.stdin.buffer.read())\n"
        "except UnsafePickle:\n    pass\n"
    )
    # 10 s: the interpreter starts within one, and the million opcodes take two on a busy machine.
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
