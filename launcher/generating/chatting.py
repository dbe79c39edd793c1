"""The chat at the terminal."""

import contextlib
import logging
import signal
import sys
from collections.abc import Callable

from launcher.console import print_result
from launcher.generating.answering import start_batch
from launcher.generating.answers import Answer, blank_answers
from launcher.generating.conversation import conversation_of
from launcher.generating.preflight import Ready
from launcher.generating.requests import Request
from launcher.ranks.report import Stopped, end_at_once, take_ctrl_c
from launcher.settings.options import RunOptions
from launcher.terminal import Terminal
from model.generation.stopping import AnswerStream
from model.llama import Llama
from parallel import World

log = logging.getLogger("shardrun")


def converse(llama: Llama, options: RunOptions, ready: Ready) -> None:
    """Read a line, answer it, until the input ends. Collective: rank 0 reads, prints, and says when to stop.

    At a terminal Ctrl-C stops the answer that comes, and the chat goes on; twice in a second it ends everything.
    Not under torchrun: its agent ends all ranks at the first Ctrl-C, which a rank can neither see nor prevent.
    With other input than a terminal Ctrl-C ends the run as it ends any.
    """
    world, section = llama.world, options.generation
    conversation = world.together("starting the chat", lambda: conversation_of(options, ready.tokenizer))
    with contextlib.ExitStack() as stack:
        terminal = _begin(world, stack)

        def read() -> str:
            assert terminal is not None, "rank 0 reads"
            return terminal.read()

        while text := world.told("reading a message", read, by_person=True):
            request = conversation.ask(text)
            answer = _answer(llama, options, ready, request, lambda: terminal is not None and terminal.interrupted)
            if request.to_run:
                conversation.answered(answer.text(ready, tuple(section.stop or ())))
                llama.check()
            if terminal is not None:
                _end_answer(answer, options, ready, terminal.interrupted)


def _begin(world: World, stack: contextlib.ExitStack) -> Terminal | None:
    """Where rank 0's messages come from; and from here on the right rank heeds Ctrl-C. Collective."""
    env, terminal = world.env, None

    def open_input() -> str:
        nonlocal terminal
        terminal = Terminal(sys.stdin, forwarded=bool(env.run_folder))
        return "person" if terminal.by_person else "file"

    by_person = world.told("opening the input", open_input, by_person=True) == "person"
    if not by_person or env.agent_store:
        return terminal
    if env.rank and env.run_folder:
        # A terminal sends it to every rank; rank 0 says what is to be done.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    world.together("starting the chat", lambda: None)
    if terminal is not None:
        stack.enter_context(terminal.taking_ctrl_c(lambda: end_at_once(Stopped(signal.SIGINT), env)))
        take_ctrl_c(env)
        log.info("each line is a message; Ctrl-C stops an answer, Ctrl-D ends the chat")
    return terminal


def _answer(
    llama: Llama, options: RunOptions, ready: Ready, request: Request, interrupted: Callable[[], bool]
) -> Answer:
    """The answer to one request; rank 0 prints it as it comes, unless it is to be an object. Collective."""
    section = options.generation
    [answer] = blank_answers(request, 1)
    show = print_result if llama.world.env.rank == 0 and not section.json else _nowhere
    if not request.to_run:
        show(request.reply or "")
        return answer
    if section.echo:
        show(ready.tokenizer.decode(request.tokens))
    stream = AnswerStream(ready.tokenizer, tuple(section.stop or ()), after=request.tokens if section.echo else ())
    generation = start_batch(llama, options, ready, [request], interrupted)
    for event in generation.events():
        answer.take(event)
        if event.token is not None:
            show(stream.push(event.token))
    show(stream.finish())
    answer.prompt_logprobs = next(iter(generation.prompt_logprobs), None)
    answer.score = next(iter(generation.scores), None)
    return answer


def _end_answer(answer: Answer, options: RunOptions, ready: Ready, interrupted: bool) -> None:
    """What is said behind an answer, on rank 0."""
    request, section = answer.request, options.generation
    if request.error is not None:
        log.warning("not answered: %s", request.error)
    if section.json:
        print_result(f"{answer.as_json(ready, section)}\n")
    elif request.error is None:
        print_result("\n")
    if not request.to_run or interrupted or answer.finish_reason != "length":
        return
    if len(answer.tokens) == section.max_gen_len:
        log.warning("note: the answer was cut at %d tokens (--max_gen_len)", section.max_gen_len)
    else:
        log.warning("note: the answer was cut where %d tokens are full (--max_seq_len)", options.model.max_seq_len)


def _nowhere(_text: str) -> None:
    """Other ranks print nothing."""
