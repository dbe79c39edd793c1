"""Llama 2's chat format: dialogs to token ids (llama `generation.py`)."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
SPECIAL_TAGS = (B_INST, E_INST, "<<SYS>>", "<</SYS>>")
UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    role: Role
    content: str


Dialog = list[Message]


def is_unsafe(dialog: Sequence[Message]) -> bool:
    """True where a message holds one of the format's own tags, and could speak for somebody else."""
    return any(tag in message["content"] for message in dialog for tag in SPECIAL_TAGS)


def check_dialog(dialog: object, index: int) -> None:
    """RefusedError where the turns are not (system,) user, assistant, user, ..., user."""
    if not isinstance(dialog, list) or not dialog:
        raise RefusedError(f"dialog {index} is {dialog!r}; wanted a list of messages")
    for place, message in enumerate(dialog):
        fields = isinstance(message, dict) and {"role", "content"} <= set(message)
        if not fields or not isinstance(message["content"], str):
            raise RefusedError(f'dialog {index}, message {place}: wanted {{"role": ..., "content": "..."}}')
    roles = [message["role"] for message in dialog]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * ((len(turns) + 1) // 2)
    if turns != expected[: len(turns)] or not turns or turns[-1] != "user":
        raise RefusedError(
            f"dialog {index} has the roles {', '.join(map(str, roles))}; wanted system (or none), "
            "then user and assistant "
            "in turn, the last one user"
        )


def encode_dialog(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[int]:
    """Ids of a checked dialog: each finished turn as bos, text, eos, then the open one."""
    turns = list(dialog)
    if turns[0]["role"] == "system":
        content = B_SYS + turns[0]["content"] + E_SYS + turns[1]["content"]
        turns = [{"role": turns[1]["role"], "content": content}, *turns[2:]]
    ids: list[int] = []
    for prompt, answer in zip(turns[:-1:2], turns[1::2], strict=True):
        text = f"{B_INST} {prompt['content'].strip()} {E_INST} {answer['content'].strip()} "
        ids += tokenizer.encode(text, bos=True, eos=True)
    return ids + tokenizer.encode(f"{B_INST} {turns[-1]['content'].strip()} {E_INST}", bos=True, eos=False)
