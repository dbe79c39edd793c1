"""scripts/train_demo.py: two ranks train, stop, go on, and leave a checkpoint that runs."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command import Running

ROOT = Path(__file__).resolve().parents[2]


def stories() -> str:
    """Nonsense of enough different words for a vocabulary of 2048 pieces."""
    draw = random.Random(1)
    syllables = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "nrlst"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(3000)]
    return "\n\n".join(" ".join(draw.choices(words, k=30)).capitalize() + "." for _ in range(800))


def train(folder: Path, steps: int) -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "scripts" / "train_demo.py"), "--text", "stories.txt.gz", "--out", "out", "--work", "work"]
    done = subprocess.run(
        [*torchrun, *script, "--steps", str(steps)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.drill
def test_training_goes_on_where_it_stopped_and_its_checkpoint_runs(tmp_path: Path) -> None:
    (tmp_path / "stories.txt.gz").write_bytes(gzip.compress(stories().encode()))
    assert "from step 0 of 2" in train(tmp_path, 2)
    assert "from step 2 of 4" in train(tmp_path, 4)
    losses = [row["loss"] for row in json.loads((tmp_path / "work" / "log.json").read_text())]
    assert len(losses) == 4
    assert losses[3] < losses[0]
    flags = ["--prompts", '["Once"]', "--max_gen_len", "5", "--json", "--nproc_per_node", "2"]
    with Running(["complete", "--ckpt_dir", str(tmp_path / "out"), *flags], tmp_path) as running:
        outcome = running.end()
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["prompt_tokens"][0] == 1
