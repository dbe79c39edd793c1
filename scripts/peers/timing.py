"""What every measured process shares: its task as JSON, its prompts, and the clock. Only the standard library, because
peers run in a Python of their own."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one process measures. `ckpt_dir`: Meta's layout in one file, but for shardrun and transformers any.

    `engine_path`: a GGUF file for llama.cpp, gpt-fast's folder for gpt-fast.
    """

    ckpt_dir: str
    engine_path: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    quantize: str = "none"
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 48
    static_cache: bool = False

    @staticmethod
    def given() -> "Task":
        """That of this process."""
        return Task(**json.loads(sys.argv[1]))

    def as_text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def warm_up_tokens(self) -> int:
        """Few, but enough that whatever is compiled or recorded has been."""
        return min(8, self.new_tokens)

    @property
    def prompts(self) -> list[list[int]]:
        """The same for every engine; rows differ. Ids of 3 and more: the first are often special."""
        room = self.sizes["vocab_size"] - 3
        places = range(self.prompt_tokens)
        return [[3 + (7919 * (place + 131 * row)) % room for place in places] for row in range(self.batch_size)]


class Clock:
    """When each step of one run ended, from when it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._marks: list[float] = []

    def step(self) -> None:
        """The tokens of a step are known here."""
        self._marks.append(time.perf_counter())

    @property
    def found(self) -> dict[str, Any]:
        """Seconds to the first tokens, and of each step of decoding."""
        marks = self._marks
        return {
            "first_token_s": marks[0] - self._started,
            "steps_s": [later - earlier for earlier, later in pairwise(marks)],
        }


def answer(clock: Clock, load_s: float, tokens: list[int], version: str, device_name: str = "") -> None:
    """Tell the parent; `tokens`: those of the first row."""
    about = {"load_s": load_s, "tokens": tokens, "version": version, "device_name": device_name}
    print(json.dumps(clock.found | about), flush=True)
