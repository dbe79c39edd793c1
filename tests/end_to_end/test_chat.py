"""The chat at a terminal, on the demo checkpoint: real processes, and a pseudo-terminal to type at.

The model writes stories and knows no chat, so its answers are stories; what is looked at is everything around them.
"""

import json
import os
import pty
import re
import signal
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import sentencepiece

from model import Llama
from model.chat import UNSAFE_ERROR
from tests.end_to_end.command import Outcome, Running, assert_done, assert_refused, run

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
# Answers that go on until they are stopped: no token ends them.
ENDLESS = ("--eos_ids", "[]", "--max_seq_len", "16384", "--max_gen_len", "12000", "--temperature", "0")
# Far beyond what is seen on a loaded machine of two cores.
LIMIT_S = 60.0
CTRL_C, CTRL_D = "\x03", "\x04"
# fairscale's lines begin like a prompt.
BEGINNING, PROMPT_OR_HINT = {"> ", "Ctrl-D ends the chat"}, re.compile("> (?!initializing)|Ctrl-D ends the chat")


def chat(*flags: str) -> list[str]:
    return ["chat", "--ckpt_dir", str(DEMO), "--device", "cpu", "--dtype", "float32", *flags]


class AtTerminal(Running):
    """A command at a terminal of its own: what is typed there, and what it shows."""

    def __init__(self, arguments: Sequence[str], folder: Path, results: str = ">&0") -> None:
        """`results`: what the shell does with stdout; else than to the terminal, with "", they go to a file."""
        self._keyboard, self._screen = pty.openpty()
        self._shown = bytearray()
        self._seen = 0
        # What the leader of a session opens first becomes the session's terminal, which sends it Ctrl-C.
        wrapper = ("sh", "-c", f'exec "$@" <>"$0" {results} 2>&0', os.ttyname(self._screen))
        super().__init__(arguments, folder, env={"TERM": "dumb"}, wrapper=wrapper)
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        os.close(self._screen)
        self._watcher.join()
        os.close(self._keyboard)

    @property
    def shown(self) -> str:
        return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def wait(self, found: Callable[[str], int | None]) -> str:
        """Wait until `found` says up to where what is shown has been waited for; that part of it."""
        deadline = time.monotonic() + LIMIT_S
        while (end := found(self.shown[self._seen :])) is None:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.shown}"
            assert time.monotonic() < deadline, f"not shown within {LIMIT_S} s:\n{self.shown}"
            time.sleep(0.01)
        part = self.shown[self._seen :][:end]
        self._seen += end
        return part

    def expect(self, text: str) -> str:
        """Wait until `text` is shown; what stands before it."""
        return self.wait(lambda shown: shown.index(text) + len(text) if text in shown else None).removesuffix(text)

    def begin(self) -> None:
        """Wait for the first prompt. On a loaded machine it may come before the log that is passed on."""
        self.wait(lambda shown: len(shown) if set(PROMPT_OR_HINT.findall(shown)) >= BEGINNING else None)

    def say(self, message: str) -> None:
        """Type a line, and see it."""
        self.type(f"{message}\r")
        self.expect(f"{message}\n")

    def answer_begins(self) -> str:
        """Wait for a part of a streamed answer."""
        return self.wait(lambda shown: len(shown) if len(shown) > 30 else None)

    def edits_as_usual(self) -> bool:
        """Whether the terminal echoes what is typed, and takes it by lines."""
        local = termios.tcgetattr(self._screen)[3]
        return local & (termios.ECHO | termios.ICANON) == termios.ECHO | termios.ICANON

    def _watch(self) -> None:
        try:
            while data := os.read(self._keyboard, 65536):
                self._shown += data
        except OSError:  # the last process has closed it
            pass


def assert_ended(terminal: AtTerminal, code: int, limit_s: float = LIMIT_S) -> None:
    outcome = terminal.end(limit_s)
    assert outcome.code == code, terminal.shown
    assert outcome.left == []
    assert "Traceback" not in terminal.shown
    assert "error" not in terminal.shown.replace(UNSAFE_ERROR, "")
    assert terminal.edits_as_usual()


def test_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_chat(case: Path) -> None:
    with AtTerminal(chat(*ENDLESS), case) as terminal:
        terminal.begin()
        terminal.say("hello [INST] you")
        assert terminal.expect("> ") == f"{UNSAFE_ERROR}\n"
        terminal.type("half a thought" + CTRL_C)
        terminal.expect("Ctrl-D ends the chat\n> ")
        terminal.say("  ")
        assert terminal.expect("> ") == ""
        terminal.say("Tell me about a cat.")
        first = terminal.answer_begins()
        terminal.type(CTRL_C)
        first += terminal.expect("\n> ")
        terminal.say("And the dog?")
        second = terminal.answer_begins()
        terminal.type(CTRL_C)
        second += terminal.expect("\n> ")
        terminal.type(CTRL_D)
        assert_ended(terminal, 0)
    # What was said before it was stopped is what the model goes on from, and nothing else.
    said, asked = first.replace("^C", ""), ["Tell me about a cat.", "And the dog?"]
    llama = Llama.build(str(DEMO), None, 2048, 1, dtype="float32", device="cpu")
    history = [{"role": "user", "content": asked[0]}, {"role": "assistant", "content": said}]
    expected = llama.chat_completion(
        [[*history, {"role": "user", "content": asked[1]}]],  # type: ignore[list-item]
        temperature=0,
        max_gen_len=20,
    )
    beginning = expected[0]["generation"]["content"]
    assert len(beginning) > 20
    assert second.replace("^C", "")[:30] == beginning[:30]


def test_two_ranks_wait_for_a_person_longer_than_for_each_other(case: Path) -> None:
    flags = (*ENDLESS, "--nproc_per_node", "2", "--timeout_s", "3", "--heartbeat_s", "3")
    # With the answers in a file there is no editing of lines, and prompts on the terminal all the same.
    with AtTerminal(chat(*flags), case, results="") as terminal:
        terminal.begin()
        time.sleep(5)
        terminal.say("Tell me about a cat.")
        terminal.wait_for_output()
        terminal.type(CTRL_C)
        assert terminal.expect("> ") == "^C"
        terminal.type("half a thought" + CTRL_C)
        terminal.expect("Ctrl-D ends the chat\n> ")
        since = time.monotonic()
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert_ended(terminal, 128 + signal.SIGTERM)
        assert time.monotonic() - since < 6
        assert terminal.shown.count("stopped by SIGTERM") == 1
        assert re.fullmatch(r"\w.*\n", terminal.out, re.DOTALL)
        assert "> " not in terminal.out


def test_two_quick_ctrl_c_end_a_chat_that_hangs(case: Path) -> None:
    with AtTerminal(chat(*ENDLESS, "--nproc_per_node", "2"), case) as terminal:
        terminal.begin()
        terminal.say("Tell me about a cat.")
        terminal.answer_begins()
        os.kill(terminal.ranks()[1], signal.SIGSTOP)
        since = time.monotonic()
        # Until it has had two: on a loaded machine the second may come before the first is taken, and both be one.
        while 0 in terminal.ranks() and time.monotonic() - since < LIMIT_S:
            terminal.type(CTRL_C)
            time.sleep(0.3)
        assert_ended(terminal, 128 + signal.SIGINT)
        assert time.monotonic() - since < 10
        assert terminal.shown.count("stopped by SIGINT") == 1


MESSAGES = [
    "Tell me a story about a cat.",
    "What did [INST] the cat do?",
    "Where was the dog?",
    "  And the naïve bird?",
    "Tell me more. " * 60,
    "Who was happy?",
]


def chat_from_file(case: Path, *flags: str) -> Outcome:
    """A chat whose messages are lines of a file."""
    (case / "messages").write_text("\n\n".join(MESSAGES), encoding="utf-8")
    sizes = ("--max_seq_len", "128", "--max_gen_len", "24", "--system", "Be kind.")
    with Running(chat(*sizes, *flags), case, wrapper=("sh", "-c", 'exec "$@" <messages', "sh")) as running:
        return running.end()


def objects(outcome: Outcome) -> list[dict[str, Any]]:
    assert_done(outcome)
    return [json.loads(line) for line in outcome.out.splitlines()]


def llama2_ids(dialog: list[dict[str, str]]) -> list[int]:
    """The ids of a dialog with a system message, put together here alone."""
    sentences = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    system, *turns = [message["content"] for message in dialog]
    turns[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{turns[0]}"
    turns = [turn.strip() for turn in turns]
    ids: list[int] = []
    for question, answer in zip(turns[:-1:2], turns[1::2], strict=True):
        ids += [1, *sentences.encode(f"[INST] {question} [/INST] {answer} "), 2]
    return [*ids, 1, *sentences.encode(f"[INST] {turns[-1]} [/INST]")]


def test_lines_of_a_file_are_a_chat_that_is_the_same_at_any_mp(case: Path) -> None:
    outcome = chat_from_file(case, "--json")
    answers = objects(outcome)
    assert [answer["index"] for answer in answers] == list(range(len(MESSAGES)))
    assert [answer["prompt"] for answer in answers] == MESSAGES
    first, unsafe, second, third, long, fourth = answers
    assert (unsafe["generation"], unsafe["tokens"]) == (UNSAFE_ERROR, [])
    assert re.match(r"the message and the system message take \d+ tokens, .* in 128 \(max_seq_len\)", long["error"])
    # Each goes on from all answered before it, until the oldest no longer fit.
    history = [{"role": "system", "content": "Be kind."}]
    forgotten = 0
    for answer in (first, second, third, fourth):
        dialog, question = answer["dialog"], {"role": "user", "content": answer["prompt"]}
        assert dialog in [[history[0], *history[start:], question] for start in range(1, len(history) + 1, 2)]
        forgotten += len(history) + 1 > len(dialog)
        assert answer["prompt_tokens"] == llama2_ids(dialog)
        assert len(answer["prompt_tokens"]) + 24 <= 128
        history = [*dialog, {"role": "assistant", "content": answer["generation"]}]
    assert len(third["dialog"]) + len(fourth["dialog"]) < 14
    assert outcome.err.count("messages were forgotten") == forgotten > 0
    assert outcome.err.count("not answered") == 1
    # The same dialogs asked at once get the same answers; so does a chat over two ranks, here as text.
    dialogs = json.dumps([answer["dialog"] for answer in answers[:4]])
    at_once = run(chat("--max_seq_len", "128", "--max_gen_len", "24", "--json", "--dialogs", dialogs), case)
    assert objects(at_once) == answers[:4]
    outcome = chat_from_file(case, "--nproc_per_node", "2")
    assert_done(outcome)
    assert outcome.out == "".join(f"{answer['generation']}\n" for answer in answers if answer is not long)
    # Both ranks know it; it is said once.
    assert outcome.err.count("messages were forgotten") == forgotten
    cut = sum(answer.get("finish_reason") == "length" for answer in answers)
    assert outcome.err.count("note: the answer was cut at 24 tokens (--max_gen_len)") == cut > 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--system", "a <<SYS>> b"), ("--system", "special tags", "[INST], [/INST], <<SYS>>, <</SYS>>")),
        (("--system", "a cat " * 60, "--max_seq_len", "32"), ("--system", "tokens", "in 32 (max_seq_len)")),
        (("--num_return_sequences", "2"), ("--num_return_sequences is 2", "one answer", "--dialogs")),
        (("--output", "answers.jsonl"), ("--output", "--dialogs")),
    ],
    ids=["tags_in_the_system_message", "system_message_too_long", "several_answers", "a_file_of_answers"],
)
def test_flags_that_do_not_go_with_a_chat_are_refused(flags: Sequence[str], says: Sequence[str], case: Path) -> None:
    assert_refused(run(chat(*flags), case), says)
