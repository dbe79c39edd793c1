"""A model that runs from its files says so when one of them is written over, behind the last batch too."""

import os
import shutil
from pathlib import Path

import pytest

from model import Llama
from parallel import RankFailedError

DEMO = Path(__file__).resolve().parents[3] / "configs" / "demo"


def test_text_of_weights_that_were_written_over_while_it_came_is_not_returned(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "demo")
    llama = Llama.build(str(folder), None, max_seq_len=32, max_batch_size=1, device="cpu")
    assert llama.text_completion(["Once"], max_gen_len=2)
    events = llama.start([llama.encode_prompt("Once", 0)], 2, eos_ids=[]).events()
    assert next(events).token is not None
    shard = folder / "consolidated.01.pth"
    status = shard.stat()
    with shard.open("r+b") as file:
        file.seek(status.st_size // 2)
        file.write(b"\0" * 64)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    list(events)
    with pytest.raises(RankFailedError, match=r"consolidated\.01\.pth: was written over .*its time has changed"):
        llama.check()
