"""What a chat at the terminal asks of the model: a dialog that grows by a question and an answer. Without torch."""

import logging
from array import array

from launcher.generating.requests import Request
from launcher.settings.options import ChatSection, RunOptions
from model.chat import UNSAFE_ERROR, ChatFormat, Dialog, Message, chat_format, fit_dialog
from model.tokenizers.base import Tokenizer, check_text
from parallel.errors import RefusedError

log = logging.getLogger("shardrun")


class Conversation:
    """The messages so far, and the next request of them. The same on every rank."""

    def __init__(self, form: ChatFormat, system: str | None, limit: int, max_gen_len: int | None) -> None:
        """`limit`: tokens of question and answer together. RefusedError where `system` cannot be used."""
        self.form = form
        self.limit = limit
        # Tokens to be left for an answer, while there is something to forget. A length that can never be reached says
        # no more than none.
        self.room = max_gen_len if max_gen_len is not None and max_gen_len < limit else max(1, limit // 4)
        self.messages: Dialog = []
        self._asked: Dialog = []
        self._turns = 0
        if system is not None:
            self.messages.append({"role": "system", "content": system})
            self._check_system(system)

    def ask(self, text: str) -> Request:
        """The request for an answer to `text`, or with the reason why there is none. Notes what is forgotten for it."""
        index, self._turns = self._turns, self._turns + 1
        question: Message = {"role": "user", "content": text}
        self._asked = [*self.messages, question]
        if self.form.is_unsafe([question]):
            return Request(index=index, asked={"prompt": text, "dialog": self._asked}, reply=UNSAFE_ERROR)
        try:
            check_text(text)
            fitted = fit_dialog(self.form, self._asked, self.limit, self.room)
        except RefusedError as error:
            return Request(index=index, asked={"prompt": text, "dialog": self._asked}, error=str(error))
        if fitted.forgotten:
            # Every rank knows it: info is said by rank 0 alone.
            log.info(
                "note: the oldest %d messages were forgotten: with them less than %d of %d tokens (--max_seq_len) "
                "would be left for the answer",
                fitted.forgotten,
                self.room,
                self.limit,
            )
        self._asked, self.messages = fitted.dialog, fitted.dialog[:-1]
        return Request(index=index, asked={"prompt": text, "dialog": fitted.dialog}, ids=array("i", fitted.tokens))

    def answered(self, text: str) -> None:
        """Take the last question and its answer into the history."""
        answer: Message = {"role": "assistant", "content": text}
        if self.form.is_unsafe([answer]):
            log.info("note: this answer holds special tags of the chat format; it and its question were forgotten")
            return
        self.messages = [*self._asked, answer]

    def _check_system(self, system: str) -> None:
        if self.form.is_unsafe(self.messages):
            raise RefusedError(
                f"--system holds special tags of the chat format ({', '.join(self.form.tags)}); take them out"
            )
        try:
            check_text(system)
            fit_dialog(self.form, [*self.messages, {"role": "user", "content": ""}], self.limit, 1)
        except RefusedError as error:
            raise RefusedError(f"--system: {error}") from None


def conversation_of(options: RunOptions, tokenizer: Tokenizer) -> Conversation:
    """An empty conversation; RefusedError where the flags do not go with one."""
    section = options.generation
    assert isinstance(section, ChatSection)
    if section.num_return_sequences > 1:
        raise RefusedError(
            f"--num_return_sequences is {section.num_return_sequences}, but a chat goes on from one answer; leave it "
            "out, or give --dialogs"
        )
    if section.output or section.resume:
        raise RefusedError("--output and --resume are for --dialogs; a chat prints its answers: leave them out")
    return Conversation(chat_format(tokenizer), section.system, options.model.max_seq_len, section.max_gen_len)
