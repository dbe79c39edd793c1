"""llama.cpp through llama-cpp-python's low-level calls, greedy. Needs nothing of this repository but peers.timing."""

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp as cpp
from peers.timing import Clock, Task, answer

# Tokens of a row are rounded up to so many, as llama.cpp does.
_ROW_TOKENS = 256


class Engine:
    """A model and its context for one batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        cpp.llama_backend_init()
        settings = cpp.llama_model_default_params()
        settings.n_gpu_layers = 999 if task.device == "cuda" else 0
        self.model = cpp.llama_model_load_from_file(task.engine_path.encode(), settings)
        assert self.model, f"llama.cpp cannot read {task.engine_path}"
        self.context = cpp.llama_init_from_model(self.model, self._context_settings())
        assert self.context, "llama.cpp made no context"
        self.sampler = cpp.llama_sampler_init_greedy()

    def _context_settings(self) -> Any:
        task, settings = self.task, cpp.llama_context_default_params()
        row = -(-(task.prompt_tokens + task.new_tokens) // _ROW_TOKENS) * _ROW_TOKENS
        settings.n_ctx = row * task.batch_size
        settings.n_batch = max(task.prompt_tokens * task.batch_size, 32)
        settings.n_seq_max = task.batch_size
        settings.n_threads = settings.n_threads_batch = task.threads
        return settings

    def generate(self, new_tokens: int) -> tuple[Clock, list[int]]:
        """The clock of a run, and the tokens of its first row."""
        cpp.llama_memory_clear(cpp.llama_get_memory(self.context), True)
        clock = Clock()
        rows, place, found = self._run(self.task.prompts, 0), self.task.prompt_tokens, []
        for step in range(new_tokens):
            found.append(rows[0])
            clock.step()
            if step < new_tokens - 1:
                rows = self._run([[token] for token in rows], place + step)
        return clock, found

    def _run(self, tokens: Sequence[Sequence[int]], first_place: int) -> list[int]:
        """Run new tokens of each row from a place on; the likeliest behind each row."""
        count, lasts = sum(map(len, tokens)), []
        batch = cpp.llama_batch_init(count, 0, 1)
        for row, new in enumerate(tokens):
            for offset, token in enumerate(new):
                index, last = row * len(new) + offset, offset == len(new) - 1
                batch.token[index], batch.pos[index] = token, first_place + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = ctypes.c_int8(last)
                lasts += [index] if last else []
        batch.n_tokens = count
        status = cpp.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode: {status}"
        likeliest = [cpp.llama_sampler_sample(self.sampler, self.context, index) for index in lasts]
        cpp.llama_batch_free(batch)
        return likeliest


def main() -> None:
    task, started = Task.given(), time.perf_counter()
    engine = Engine(task)
    load_s = time.perf_counter() - started
    engine.generate(task.warm_up_tokens)
    clock, tokens = engine.generate(task.new_tokens)
    answer(clock, load_s, tokens, f"llama-cpp-python {cpp.__version__}")


if __name__ == "__main__":
    main()
