"""Chat formats, dialogs to token ids: Llama 2's (llama `generation.py`) and Llama 3's (llama3 `tokenizer.py`)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from model.tokenizers.base import Tokenizer, check_text
from parallel.errors import RefusedError

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
SPECIAL_TAGS = (B_INST, E_INST, "<<SYS>>", "<</SYS>>")
UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."

_B_HEADER, _E_HEADER, _END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
# What a tool answered is headed by the first of these; llama-models takes the second for it too.
_TOOL_ROLES = ("ipython", "tool")

Role = Literal["system", "user", "assistant", "ipython", "tool"]


class Message(TypedDict):
    role: Role
    content: str


Dialog = list[Message]


class ChatFormat(ABC):
    """How a family of models wants dialogs to be written. Get one with `chat_format`."""

    # Marks of the format that are plain text, and so could come from a user.
    tags: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def check(self, dialog: object, index: int) -> None:
        """RefusedError where `dialog` is no list of messages of text, or its roles are not as the format wants."""
        if not isinstance(dialog, list) or not dialog:
            raise RefusedError(f"dialog {index} is {dialog!r}; wanted a list of messages")
        for place, message in enumerate(dialog):
            fields = isinstance(message, dict) and {"role", "content"} <= set(message)
            if not fields or not isinstance(message["content"], str):
                raise RefusedError(f'dialog {index}, message {place}: wanted {{"role": ..., "content": "..."}}')
            try:
                check_text(message["content"])
            except RefusedError as error:
                raise RefusedError(f"dialog {index}, message {place}: {error}") from None
        roles = [message["role"] for message in dialog]
        if (wanted := self._wanted_instead(roles)) is not None:
            raise RefusedError(f"dialog {index} has the roles {', '.join(map(str, roles))}; wanted {wanted}")

    def is_unsafe(self, dialog: Sequence[Message]) -> bool:
        """True where a message holds one of the format's own tags, and could speak for somebody else."""
        return any(tag in message["content"] for message in dialog for tag in self.tags)

    @abstractmethod
    def encode(self, dialog: Sequence[Message]) -> list[int]:
        """Ids of a checked dialog, up to where the answer begins."""

    @abstractmethod
    def _wanted_instead(self, roles: list[object]) -> str | None:
        """The order of roles that is wanted, where this is another."""


class Llama2Chat(ChatFormat):
    """[INST] and <<SYS>> in plain text. Each finished turn is bos, text, eos; then comes the open one."""

    tags = SPECIAL_TAGS

    def encode(self, dialog: Sequence[Message]) -> list[int]:
        turns = list(dialog)
        if turns[0]["role"] == "system":
            content = B_SYS + turns[0]["content"] + E_SYS + turns[1]["content"]
            turns = [{"role": turns[1]["role"], "content": content}, *turns[2:]]
        ids: list[int] = []
        for prompt, answer in zip(turns[:-1:2], turns[1::2], strict=True):
            text = f"{B_INST} {prompt['content'].strip()} {E_INST} {answer['content'].strip()} "
            ids += self.tokenizer.encode(text, bos=True, eos=True)
        return ids + self.tokenizer.encode(f"{B_INST} {turns[-1]['content'].strip()} {E_INST}", bos=True, eos=False)

    def _wanted_instead(self, roles: list[object]) -> str | None:
        turns = roles[1:] if roles[0] == "system" else roles
        expected = ["user", "assistant"] * ((len(turns) + 1) // 2)
        if turns == expected[: len(turns)] and turns and turns[-1] == "user":
            return None
        return "system (or none), then user and assistant in turn, the last one user"


class Llama3Chat(ChatFormat):
    """Each message behind a header with its role. The marks are control tokens, which no text spells."""

    def encode(self, dialog: Sequence[Message]) -> list[int]:
        specials = self.tokenizer.specials
        ids = [self.tokenizer.bos_id]
        for message in dialog:
            role = _TOOL_ROLES[0] if message["role"] in _TOOL_ROLES else message["role"]
            ids += [*self._header(role), *self._text(message["content"].strip()), specials[_END_OF_TURN]]
        return ids + self._header("assistant")

    def _wanted_instead(self, roles: list[object]) -> str | None:
        known = {"system", "user", "assistant", *_TOOL_ROLES}
        if all(isinstance(role, str) and role in known for role in roles) and roles[-1] in ("user", *_TOOL_ROLES):
            return None
        return "system, user, assistant and ipython (a tool's answer) in any order, the last one user or ipython"

    def _header(self, role: str) -> list[int]:
        specials = self.tokenizer.specials
        return [specials[_B_HEADER], *self._text(role), specials[_E_HEADER], *self._text("\n\n")]

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, bos=False, eos=False)


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """Llama 3's format where the tokenizer has its control tokens, else Llama 2's."""
    if {_B_HEADER, _E_HEADER, _END_OF_TURN} <= tokenizer.specials.keys():
        return Llama3Chat(tokenizer)
    return Llama2Chat(tokenizer)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A dialog that leaves room for its answer, its ids, and how many messages were left out for that."""

    dialog: Dialog
    tokens: list[int]
    forgotten: int


def fit_dialog(form: ChatFormat, dialog: Sequence[Message], limit: int, room: int) -> Fitted:
    """`dialog` without its oldest exchanges (a question and its answer), as few as leave `room` of `limit` tokens free.

    The system message and the last message stay, even where they alone leave less; RefusedError where they leave
    nothing.
    """
    kept, first = list(dialog), int(dialog[0]["role"] == "system")
    tokens = form.encode(kept)
    while len(tokens) + room > limit and len(kept) > first + 2:
        del kept[first : first + 2]
        tokens = form.encode(kept)
    if len(tokens) >= limit:
        raise RefusedError(
            f"the message{' and the system message take' if first else ' takes'} {len(tokens)} tokens, which leaves no "
            f"room for an answer in {limit} (max_seq_len); shorten {'them' if first else 'it'}, or raise --max_seq_len"
        )
    return Fitted(kept, tokens, len(dialog) - len(kept))
