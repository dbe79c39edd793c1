"""The wheel: its top-level names are the three packages, and it runs where nothing else of ours is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    # From a copy: building writes beside the sources.
    names = ["launcher", "model", "parallel", "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-r", *names, str(source)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"launcher", "model", "parallel"}


def test_the_wheel_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    # The dependencies come from this environment (they are gigabytes); the package itself only from the wheel.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, timeout=300)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    # Paths in a .pth file are searched, but .pth files there, such as an editable install's, are not read.
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    python = tmp_path / "venv" / "bin" / "python"
    where = "import launcher, model, parallel; print(launcher.__file__, model.__file__, parallel.__file__)"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(str(site) in path for path in found.stdout.split())
    command = ["-m", "launcher", "complete", "--ckpt_dir", str(ROOT / "configs" / "demo"), "--nproc_per_node", "2"]
    done = subprocess.run(
        [python, *command, "--prompts", '["Once upon a time"]', "--max_gen_len", "5", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"tokens"' in done.stdout
