"""Where answers go: to stdout, or to a file that an interrupted run can be gone on with; always in order."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from launcher.console import print_result
from launcher.generating.answer_file import AnswerFile, Origin
from launcher.generating.answers import Answer, beginnings, blank_answers
from launcher.generating.preflight import Ready
from launcher.generating.requests import digest_of
from launcher.settings.options import RunOptions
from parallel import World

# What may be another when a run is gone on with: it changes no answer, or a digest of what it names is compared.
_FREE = frozenset(
    {"ckpt_dir", "tokenizer_path", "allow_legacy", "check_weights"}
    | {"prompts", "dialogs", "bad_lines", "output", "resume", "json", "stream"}
)


class Output:
    """Answers in the order of their requests. `hold` them as they come; `release` gives out what is in order."""

    def __init__(self, world: World, options: RunOptions, ready: Ready, file: AnswerFile | None, first: int) -> None:
        self.world, self.options, self.ready, self.file = world, options, ready, file
        # The first request that was still to be answered when this run began.
        self.first = self._next = first
        self._held: dict[int, Sequence[Answer]] = {}
        self._printed = False
        self._reader_gone: BrokenPipeError | None = None

    def hold(self, answers: Sequence[Answer]) -> None:
        """Keep the answers to one request until those before it are there."""
        assert answers[0].request.index >= self._next
        self._held[answers[0].request.index] = answers

    def release(self) -> None:
        """Give out what is in order. Collective: a failure to write is told on every rank."""
        in_order = list(self._in_order())
        if in_order:
            self.world.told("writing the answers", lambda: self._write(in_order))
        if self._reader_gone is not None:
            raise self._reader_gone

    def finish(self) -> None:
        """All is answered."""
        assert self._next == len(self.ready.requests) and not self._held
        if self.file is not None:
            self.file.finish()

    def _in_order(self) -> Iterator[Sequence[Answer]]:
        requests = self.ready.requests
        while self._next < len(requests):
            request = requests[self._next]
            if request.to_run and request.index not in self._held:
                return
            yield self._held.pop(request.index) if request.to_run else blank_answers(request, 1)
            self._next += 1

    def _write(self, in_order: Sequence[Sequence[Answer]]) -> str:
        """On rank 0; the others are told how it went."""
        section = self.options.generation
        if section.json or self.file is not None:
            text = "".join(f"{answer.as_json(self.ready, section)}\n" for answers in in_order for answer in answers)
        else:
            text = "".join(self._paragraph(answer) for answers in in_order for answer in answers)
        if self.file is not None:
            self.file.write(text)
            return ""
        try:
            print_result(text)
        except BrokenPipeError as error:
            # Raised when the others were told that all is well: none of them is to complain of it.
            self._reader_gone = error
        return ""

    def _paragraph(self, answer: Answer) -> str:
        """An answer to be read, with an empty line before it unless it is the first."""
        if answer.request.error is not None:
            return ""
        gap, self._printed = "\n" if self._printed else "", True
        return f"{gap}{answer.as_text(self.ready, self.options.generation)}\n"


@contextmanager
def open_output(world: World, options: RunOptions, ready: Ready) -> Iterator[Output]:
    """Where the answers go, and from which request on there are some to give. Collective."""
    section = options.generation
    if section.output is None:
        yield Output(world, options, ready, None, 0)
        return
    path, file = Path(section.output), list[AnswerFile]()

    def begin() -> str:
        file.append(AnswerFile(path, section.resume))
        lines = (beginnings(request, section.num_return_sequences) for request in ready.requests)
        return str(file[0].begin(_origin(world, options, ready), lines, len(ready.requests)))

    try:
        first = int(world.told("opening --output", begin))
        yield Output(world, options, ready, file[0] if file else None, first)
    finally:
        for one in file:
            one.close()


def _origin(world: World, options: RunOptions, ready: Ready) -> Origin:
    settings = {
        field.name: getattr(section, field.name)
        for section in (options.model, options.generation)
        for field in fields(section)
        if field.name not in _FREE
    }
    weights = json.dumps(ready.found.checkpoint.fingerprint(), default=str)
    digests = {
        "another checkpoint": hashlib.sha256(weights.encode()).hexdigest(),
        "another tokenizer": ready.tokenizer.digest(),
        "other prompts or dialogs": digest_of(ready.requests),
    }
    places = {"ranks": world.env.world_size, "device": world.device.type}
    return Origin(settings={"command": options.command, **settings}, digests=digests, places=places)
