"""Requests: what the user asked, as token ids that can be run, or with the reason why not. Without torch."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from launcher.generating.asked import Asked, read_dialogs, read_prompts, read_text
from launcher.settings.options import ChatSection, CompleteSection, InfillSection, RunOptions, ScoreSection
from model.chat import UNSAFE_ERROR, Dialog, chat_format
from model.infill import infill_ids, split_prompt
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError
from parallel.position import position


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing asked of the model, ready to be run."""

    index: int
    # What of it stands in its answer.
    asked: dict[str, object]
    ids: "array[int] | None" = None
    # Text that the answer stands between, where it fills in.
    before: str = ""
    after: str = ""
    # The answer, where it is known without the model, or why there is none.
    reply: str | None = None
    error: str | None = None

    @property
    def tokens(self) -> list[int]:
        return [] if self.ids is None else self.ids.tolist()

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return 0 if self.ids is None else len(self.ids)

    @property
    def to_run(self) -> bool:
        return self.reply is None and self.error is None


def requests_of(options: RunOptions, tokenizer: Tokenizer) -> list[Request]:
    """Every request of the command. A line of a file that cannot be run is refused, or has its error with it."""
    section, limit = options.generation, options.model.max_seq_len
    if isinstance(section, ScoreSection):
        return [_text_to_score(section, tokenizer)]
    if isinstance(section, CompleteSection):
        asked, ready = read_prompts(section.prompts), _prompt_maker(tokenizer)
    elif isinstance(section, InfillSection):
        asked, ready = read_prompts(section.prompts), _infill_maker(tokenizer, section.suffix_first)
    else:
        assert isinstance(section, ChatSection), "a command without requests"
        if section.dialogs is None:
            return []
        asked, ready = read_dialogs(section.dialogs), _dialog_maker(tokenizer)
    return [_request(index, item, ready, limit, section.bad_lines) for index, item in enumerate(asked)]


def digest_of(requests: Iterable[Request]) -> str:
    """The same for the same requests in the same order, whatever file they come from."""
    found = hashlib.sha256()
    for request in requests:
        position.tick()
        found.update(json.dumps([request.asked, request.tokens, request.reply, request.error is None]).encode())
    return found.hexdigest()


_Maker = Callable[[int, object], Request]


def _request(index: int, asked: Asked, ready: _Maker, limit: int, bad_lines: str) -> Request:
    position.tick()
    try:
        if asked.error is not None:
            raise RefusedError(f"{asked.name}: {asked.error}")
        request = _named(asked, lambda: ready(index, asked.value))
        if request.length > limit:
            raise RefusedError(
                f"{asked.name} has {request.length} tokens but max_seq_len is {limit}; shorten it, or raise "
                "--max_seq_len"
            )
        return request
    except RefusedError as error:
        if bad_lines == "refuse":
            hint = "; --bad_lines skip leaves such lines out" if asked.place else ""
            raise RefusedError(f"{error}{hint}") from None
        return Request(index=index, asked={"prompt": _shown(asked.value)}, error=str(error))


def _named(asked: Asked, act: Callable[[], Request]) -> Request:
    """Let a refusal say where what was asked stands."""
    try:
        return act()
    except RefusedError as error:
        text = str(error)
        rest = text.removeprefix(asked.item)
        raise RefusedError(f"{asked.name}: {text}" if rest == text else f"{asked.name}{rest}") from None


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _ids(tokens: Sequence[int]) -> "array[int]":
    # A list of numbers takes nine times as much, and every rank holds all requests.
    return array("i", tokens)


def _prompt_maker(tokenizer: Tokenizer) -> _Maker:
    def make(index: int, prompt: object) -> Request:
        text = cast(str, prompt)
        return Request(index=index, asked={"prompt": text}, ids=_ids(tokenizer.encode(text, bos=True, eos=False)))

    return make


def _infill_maker(tokenizer: Tokenizer, suffix_first: bool) -> _Maker:
    def make(index: int, prompt: object) -> Request:
        before, after = split_prompt(cast(str, prompt), index)
        ids = _ids(infill_ids(tokenizer, before, after, suffix_first))
        return Request(index=index, asked={"prompt": prompt}, ids=ids, before=before, after=after)

    return make


def _dialog_maker(tokenizer: Tokenizer) -> _Maker:
    form = chat_format(tokenizer)

    def make(index: int, given: object) -> Request:
        form.check(given, index)
        dialog = cast(Dialog, given)
        asked: dict[str, object] = {"prompt": dialog[-1]["content"], "dialog": dialog}
        if form.is_unsafe(dialog):
            return Request(index=index, asked=asked, reply=UNSAFE_ERROR)
        return Request(index=index, asked=asked, ids=_ids(form.encode(dialog)))

    return make


def _text_to_score(section: ScoreSection, tokenizer: Tokenizer) -> Request:
    text = section.text
    if text.startswith("@"):
        text = read_text(Path(text[1:]), "text")
    tokens = tokenizer.encode(text, bos=True, eos=False)
    if len(tokens) < 2:
        given = f"{section.text}: holds {text!r}" if section.text.startswith("@") else f"is {text!r}"
        raise RefusedError(f"--text {given}; wanted a text of one token or more, to be scored behind the bos token")
    return Request(index=0, asked={"prompt": text}, ids=_ids(tokens))
