"""One tokenizer of each kind. `tokenizer` (SentencePiece) is made one folder up."""

import pytest

from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from tests.unit.model.tokenizers import tiny


@pytest.fixture(scope="session")
def ranks() -> list[bytes]:
    return tiny.train_ranks()


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory, ranks: list[bytes]) -> Tokenizer:
    return open_tokenizer(tiny.write_tiktoken(tmp_path_factory.mktemp("llama3") / "tokenizer.model", ranks))


@pytest.fixture(scope="session")
def llama3_json(tmp_path_factory: pytest.TempPathFactory, ranks: list[bytes]) -> Tokenizer:
    path = tmp_path_factory.mktemp("llama3_json") / "tokenizer.json"
    return open_tokenizer(tiny.write_json(path, tiny.llama3_json(ranks)))


@pytest.fixture(scope="session")
def llama2_json(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Tokenizer:
    path = tmp_path_factory.mktemp("llama2_json") / "tokenizer.json"
    return open_tokenizer(tiny.write_json(path, tiny.llama2_json(tokenizer.path)))


@pytest.fixture(params=["tokenizer", "llama3", "llama3_json", "llama2_json"])
def each(request: pytest.FixtureRequest) -> Tokenizer:
    """Every kind in turn."""
    found: Tokenizer = request.getfixturevalue(request.param)
    return found
