"""Every request answered: batch by batch, streamed or whole, to stdout or to a file."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from launcher.console import ProgressLine, print_result
from launcher.generating.answers import Answer, blank_answers
from launcher.generating.batches import batches_of
from launcher.generating.output import Output, open_output
from launcher.generating.preflight import Ready, how
from launcher.generating.requests import Request
from launcher.settings.options import RunOptions
from model.generation.generate import Generation
from model.generation.stopping import AnswerStream
from model.llama import Llama
from parallel import World

log = logging.getLogger("shardrun")


def answer_requests(world: World, options: RunOptions, ready: Ready, load: Callable[[], Llama]) -> None:
    """Answer every request; rank 0 prints or writes. The model is loaded only where it is needed. Collective."""
    section = options.generation
    with open_output(world, options, ready) as output:
        left = ready.requests[output.first :]
        if world.env.rank == 0:
            for request in left:
                if request.error is not None:
                    log.warning("skipped: %s", request.error)
        if any(request.to_run for request in left):
            llama = load()
            if section.stream and not section.json:
                _stream_all(llama, options, ready)
                return
            _answer_batches(llama, options, ready, output)
        output.release()
        output.finish()


def _answer_batches(llama: Llama, options: RunOptions, ready: Ready, output: Output) -> None:
    left = [request for request in ready.requests[output.first :] if request.to_run]
    progress = _Progress(len(left), enabled=llama.world.env.rank == 0)
    width = max(options.generation.num_beams, options.generation.num_return_sequences)
    for batch in batches_of(ready.requests, max(1, options.model.max_batch_size // width), output.first):
        groups = list(_answer(llama, options, ready, batch))
        # A batch is run as a whole, though an earlier run may have written some of its answers.
        wanted = [answers for answers in groups if answers[0].request.index >= output.first]
        for answers in wanted:
            output.hold(answers)
        progress(wanted)
        llama.check()
        output.release()
    progress.end()


class _Progress:
    """How many requests this run has answered, and how fast tokens come."""

    def __init__(self, total: int, enabled: bool) -> None:
        self.total, self.done, self.tokens, self.enabled = total, 0, 0, enabled
        self.line = ProgressLine("generating", "prompts", enabled=enabled)

    def __call__(self, groups: Sequence[Sequence[Answer]]) -> None:
        self.done += len(groups)
        self.tokens += sum(len(answer.tokens) for answers in groups for answer in answers)
        self.line(self.done, self.total, f"{self.tokens / self._passed_s:.0f} tokens/s")

    def end(self) -> None:
        """Sum up what took longer than anybody likes to wait."""
        if self.enabled and self._passed_s > ProgressLine.PATIENCE_S:
            log.info(
                "answered %d prompt%s with %d tokens in %.1f s: %.0f tokens/s",
                self.total,
                "" if self.total == 1 else "s",
                self.tokens,
                self._passed_s,
                self.tokens / self._passed_s,
            )

    @property
    def _passed_s(self) -> float:
        return max(time.monotonic() - self.line.started, 1e-9)


def start_batch(
    llama: Llama,
    options: RunOptions,
    ready: Ready,
    batch: Sequence[Request],
    interrupted: Callable[[], bool] = lambda: False,
) -> Generation:
    """Make ready to generate the answers to a batch, as the flags say. Collective."""
    section = options.generation
    return llama.start(
        [request.tokens for request in batch],
        section.max_gen_len,
        section.temperature,
        section.top_p,
        section.logprobs,
        section.echo,
        ready.eos_ids,
        [request.index for request in batch],
        interrupted,
        **how(options, ready.context),
    )


def _answer(llama: Llama, options: RunOptions, ready: Ready, batch: Sequence[Request]) -> Iterator[list[Answer]]:
    """The answers to each request of a batch."""
    copies = options.generation.num_return_sequences
    generation = start_batch(llama, options, ready, batch)
    groups = [blank_answers(request, copies) for request in batch]
    flat = [answer for group in groups for answer in group]
    for event in generation.events():
        flat[event.row].take(event)
    for answer, score in zip(flat, generation.scores, strict=False):
        answer.score = score
    for row, known in enumerate(generation.prompt_logprobs):
        for answer in groups[row]:
            answer.prompt_logprobs = known
    yield from groups


def _stream_all(llama: Llama, options: RunOptions, ready: Ready) -> None:
    """One request after the other: streamed text of several could not be read."""
    speaks = llama.world.env.rank == 0
    to_answer = [request for request in ready.requests if request.error is None]
    for place, request in enumerate(to_answer):
        if speaks and place:
            print_result("\n")
        for text in _stream(llama, options, ready, request) if request.to_run else [request.reply or ""]:
            if speaks:
                print_result(text)
        if speaks:
            print_result("\n")
        llama.check()


def _stream(llama: Llama, options: RunOptions, ready: Ready, request: Request) -> Iterator[str]:
    section, tokenizer = options.generation, ready.tokenizer
    filled_in = bool(ready.context)
    if section.echo:
        yield request.before if filled_in else tokenizer.decode(request.tokens)
    after = request.tokens if section.echo and not filled_in else ()
    stream = AnswerStream(tokenizer, tuple(section.stop or ()), ready.context, after)
    for event in start_batch(llama, options, ready, [request]).events():
        if event.token is not None:
            yield stream.push(event.token)
    yield stream.finish() + (request.after if section.echo else "")
