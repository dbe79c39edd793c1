"""The arrows between the packages, and one door per third-party package, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launcher", "model", "parallel")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))
BELOW = {"parallel": {"parallel"}, "model": {"model", "parallel"}, "launcher": {"launcher", "model", "parallel"}}
DOORS = {
    "fairscale": {"parallel/registry.py"},
    "fire": {"launcher/commands.py"},
    "yaml": {"launcher/settings/yaml_file.py"},
    "sentencepiece": {"model/tokenizers/sentencepiece_file.py"},
    "tiktoken": {"model/tokenizers/tiktoken_file.py"},
    "tokenizers": {"model/tokenizers/json_file.py"},
    "gguf": {"model/gguf/file.py"},
    "triton": {"parallel/kernels/triton_products.py", "parallel/kernels/triton_steps.py"},
    "matplotlib": {"launcher/benchmarking/plot.py"},
}
RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def imported(path: Path) -> set[str]:
    """The top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(str(node.module).partition(".")[0])
    return names


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_from_launcher_to_model_to_parallel_and_never_back(path: Path) -> None:
    package = name_of(path).partition("/")[0]
    assert imported(path) & set(PACKAGES) <= BELOW[package]


@pytest.mark.parametrize("package", DOORS)
def test_a_third_party_package_has_one_door(package: str) -> None:
    assert {name_of(path) for path in FILES if package in imported(path)} == DOORS[package]


def test_only_one_file_reads_the_variables_of_ranks() -> None:
    readers = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            subscript = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
            key = node.slice if subscript else None
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("get", "getenv")
            ):
                key = node.args[0] if node.args else None
            if isinstance(key, ast.Constant) and key.value in RANK_VARIABLES:
                readers.add(name_of(path))
    assert readers <= {"parallel/environment.py"}


def test_only_one_file_makes_process_groups() -> None:
    makers = {name_of(path) for path in FILES if "init_process_group(" in path.read_text(encoding="utf-8")}
    assert makers == {"parallel/world.py"}


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    longest = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in longest.items() if lines > 300} == {}
