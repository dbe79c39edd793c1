"""Everything that is to be measured on a GPU, by one command: tests, kernels, `bench`, the first token, peers.

    .venv/bin/python scripts/bench_gpu.py --out DIR [--gpt_fast FOLDER] [--only tests,kernels,bench,first,peers] \
        [--params PARAMS_JSON]

The model is of Llama-2-7B's shape, with random weights. Each part is a process of its own with a time limit; what
fails is written down, and the others go on. DIR gets gpu.json, gpu.md and each part's output; everything is written
after each part, so that what was measured is there however it ends. Needs the `test` extra.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fire
import torch

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "kernels", "bench", "first", "peers")
LLAMA_2_7B = {
    "dim": 4096,
    "multiple_of": 256,
    "n_heads": 32,
    "n_layers": 32,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
}
# What the issue wants: tokens a second at batch 1, and seconds to the first token.
_WANTED_TOKENS_PER_S, _WANTED_FIRST_S = 290.0, 5.0
_HBM_LIMIT_TOKENS_PER_S = 363.0


@dataclass(slots=True, kw_only=True)
class Part:
    """A command and what came of it. `results`: the JSON that it wrote or printed, where there is some."""

    name: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    json_file: str = ""
    code: int | None = None
    seconds: float = 0.0
    results: Any = None


def bench_gpu(out: str, gpt_fast: str = "", only: Any = PARTS, params: str = "") -> None:
    """Measure, and write gpu.json and gpu.md."""
    folder = Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not params:
        params = str(folder / "params.json")
        Path(params).write_text(json.dumps(LLAMA_2_7B), encoding="utf-8")
    chosen = tuple(only.split(",")) if isinstance(only, str) else tuple(only)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"--only names {unknown[0]!r}; wanted some of {', '.join(PARTS)}")
    done: list[Part] = []
    with tempfile.TemporaryDirectory() as cold_cache:
        for part in _parts(folder, str(Path(params).absolute()), gpt_fast, cold_cache):
            if part.name.partition("-")[0] in chosen:
                run(part, folder)
                done.append(part)
                _write(folder, done)
    print((folder / "gpu.md").read_text(encoding="utf-8"))
    sys.exit(any(part.code != 0 for part in done))


def _parts(folder: Path, params: str, gpt_fast: str, cold_cache: str) -> list[Part]:
    python = sys.executable
    parts = [
        Part(
            name="tests",
            command=[python, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", str(ROOT / "tests")],
            limit_s=900,
        ),
        Part(
            name="kernels",
            command=[python, str(ROOT / "scripts" / "gpu_kernels.py"), str(folder / "kernels.json")],
            limit_s=1200,
            json_file=str(folder / "kernels.json"),
        ),
    ]
    for quantize in ("none", "int8", "int4"):
        first = [python, str(ROOT / "scripts" / "gpu_first_token.py"), params, quantize]
        bench = [python, "-P", "-m", "launcher", "bench", params, "--device", "cuda", "--dtype", "bfloat16", "--json"]
        bench += ["--max_batch_size", "32", "--prompt_tokens", "128", "--new_tokens", "128", "--quantize", quantize]
        cold = {"TRITON_CACHE_DIR": f"{cold_cache}/{quantize}"}
        parts += [
            Part(name=f"first-{quantize}-cold", command=first, limit_s=300, environment=cold),
            Part(name=f"first-{quantize}-again", command=first, limit_s=300, environment=cold),
            Part(name=f"bench-{quantize}", command=bench, limit_s=600),
        ]
    for batch_size in ("1", "8"):
        file = str(folder / f"peers-{batch_size}.json")
        peers = [python, str(ROOT / "scripts" / "bench_peers.py"), "llama-2-7b", "--work", str(folder / "peers")]
        peers += ["--batch_size", batch_size, "--prompt_tokens", "128", "--new_tokens", "128", "--json", file]
        peers += ["--gpt_fast", gpt_fast] if gpt_fast else []
        parts.append(Part(name=f"peers-{batch_size}", command=peers, limit_s=3600, json_file=file))
    return parts


def run(part: Part, folder: Path) -> None:
    """Run it, with its output in a file; nothing is raised where it fails."""
    print(f"{part.name}: {shlex.join(part.command)}", file=sys.stderr, flush=True)
    # Ours alone, so that what is measured is this checkout.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **part.environment}
    log, printed = folder / f"{part.name}.log", folder / f"{part.name}.out"
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as errors, printed.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                part.command, stdout=output, stderr=errors, env=environment, timeout=part.limit_s, check=False
            )
            part.code = done.returncode
        except (subprocess.TimeoutExpired, OSError) as error:
            errors.write(f"\n{error}\n")
            part.code = -1
    part.seconds = time.monotonic() - started
    part.results = _json_of(Path(part.json_file) if part.json_file else printed)


def _json_of(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text[text.index("{") :])
    except (OSError, ValueError):
        return None


def _write(folder: Path, done: list[Part]) -> None:
    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    fields = {"machine": machine, "command": sys.argv, "parts": [asdict(part) for part in done]}
    (folder / "gpu.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    lines = [f"# Measured on {machine['device']}, torch {machine['torch']}, {machine['date']}", ""]
    lines += ["| part | exit code | seconds | what it says |", "|---|---|---|---|"]
    lines += [f"| {part.name} | {part.code} | {part.seconds:.0f} | {_says(part, folder)} |" for part in done]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _says(part: Part, folder: Path) -> str:
    """One line of what was found, for people; gpu.json has all of it."""
    kind, found = part.name.partition("-")[0], part.results
    if kind == "kernels" and found:
        rates = [
            f"{one['product']} {one['quantize']} x{one['rows']} {one['gb_per_s']:.0f}" for one in found["products"]
        ]
        return f"copy {found['copy_gb_per_s']:.0f} GB/s; {'; '.join(rates)}"
    if kind == "first" and found:
        return f"first token {found['first_token_s']:.2f} s (wanted: under {_WANTED_FIRST_S:.0f}), fifth " + (
            f"{found['fifth_token_s']:.2f} s"
        )
    if kind == "bench" and found:
        rates = [f"batch {one['batch_size']}: {one['decode_tokens_per_s']:.0f}" for one in found["results"]]
        wanted = f"wanted at batch 1 in bfloat16: {_WANTED_TOKENS_PER_S:.0f} of {_HBM_LIMIT_TOKENS_PER_S:.0f}"
        return f"tokens/s: {', '.join(rates)} ({wanted})"
    if kind == "peers" and found:
        return "; ".join(f"{name}: {ratio}" for name, ratio in found["ratios"].items()) or "no peer was there"
    text = "".join((folder / f"{part.name}.{end}").read_text(encoding="utf-8") for end in ("log", "out"))
    return (text.strip().splitlines() or ["nothing"])[-1].replace("|", "/")[:200]


if __name__ == "__main__":
    fire.Fire(bench_gpu)
