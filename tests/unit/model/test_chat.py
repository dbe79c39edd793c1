"""Llama 2's chat format against strings put together by hand (llama `generation.py`, chat_completion)."""

import copy
import re
from typing import Any

import pytest

from model.chat import Message, check_dialog, encode_dialog, is_unsafe
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError


def says(role: Any, content: Any) -> Message:
    return {"role": role, "content": content}


def ids_of(tokenizer: Tokenizer, *texts: str) -> list[int]:
    """Each text behind a bos; each but the last with an eos behind."""
    ids: list[int] = []
    for text in texts[:-1]:
        ids += [1, *tokenizer.sp_model.encode(text), 2]
    return [*ids, 1, *tokenizer.sp_model.encode(texts[-1])]


def test_a_question_stands_between_inst_tags_behind_bos(tokenizer: Tokenizer) -> None:
    assert encode_dialog(tokenizer, [says("user", "hello")]) == ids_of(tokenizer, "[INST] hello [/INST]")


def test_a_system_message_stands_inside_the_first_question(tokenizer: Tokenizer) -> None:
    dialog = [says("system", "be brief"), says("user", "hello")]
    text = "[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nhello [/INST]"
    assert encode_dialog(tokenizer, dialog) == ids_of(tokenizer, text)


def test_finished_turns_end_with_a_space_and_eos(tokenizer: Tokenizer) -> None:
    dialog = [says("user", "one"), says("assistant", "two"), says("user", "three"), says("assistant", "four")]
    dialog.append(says("user", "five"))
    assert encode_dialog(tokenizer, dialog) == ids_of(
        tokenizer, "[INST] one [/INST] two ", "[INST] three [/INST] four ", "[INST] five [/INST]"
    )


def test_white_space_around_a_message_is_cut_but_that_of_the_system_message_stays(tokenizer: Tokenizer) -> None:
    dialog = [says("system", " sys\n"), says("user", " one \n"), says("assistant", "\ttwo "), says("user", " three ")]
    assert encode_dialog(tokenizer, dialog) == ids_of(
        tokenizer, "[INST] <<SYS>>\n sys\n\n<</SYS>>\n\n one [/INST] two ", "[INST] three [/INST]"
    )


def test_encoding_leaves_the_dialog_as_it_was(tokenizer: Tokenizer) -> None:
    dialog = [says("system", "s"), says("user", "u"), says("assistant", "a"), says("user", "v")]
    before = copy.deepcopy(dialog)
    encode_dialog(tokenizer, dialog)
    assert dialog == before


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["system"],
        ["user", "assistant"],
        ["user", "user"],
        ["system", "assistant", "user"],
        ["user", "system", "user"],
        ["system", "system", "user"],
        ["user", "assistant", "assistant"],
        ["tool"],
        ["user", None, "user"],
    ],
)
def test_roles_out_of_turn_are_refused_with_all_of_them(roles: list[Any]) -> None:
    sentence = f"dialog 3 has the roles {', '.join(map(str, roles))}; wanted system (or none), then user and assistant"
    with pytest.raises(RefusedError, match=re.escape(sentence)):
        check_dialog([says(role, "text") for role in roles], 3)


@pytest.mark.parametrize("roles", [["user"], ["system", "user"], ["user", "assistant", "user"]])
def test_roles_in_turn_are_accepted(roles: list[str]) -> None:
    check_dialog([says(role, "text") for role in roles], 0)


@pytest.mark.parametrize("dialog", [[], {}, "hello", None, 7])
def test_what_is_no_list_of_messages_is_refused(dialog: object) -> None:
    with pytest.raises(RefusedError, match=re.escape(f"dialog 1 is {dialog!r}; wanted a list of messages")):
        check_dialog(dialog, 1)


@pytest.mark.parametrize("message", ["hello", {"role": "user"}, {"content": "hello"}, says("user", 7)])
def test_a_message_that_lacks_a_part_is_refused_with_its_place(message: object) -> None:
    with pytest.raises(RefusedError, match=r"dialog 0, message 1: wanted \{\"role\": \.\.\., \"content\": "):
        check_dialog([says("user", "hello"), message], 0)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
def test_a_message_that_holds_a_tag_of_the_format_is_unsafe_in_any_role(tag: str) -> None:
    assert is_unsafe([says("user", f"a {tag} b")])
    assert is_unsafe([says("user", "a"), says("assistant", tag), says("user", "b")])
    assert is_unsafe([says("system", tag), says("user", "b")])
    assert not is_unsafe([says("user", tag.lower()), says("assistant", tag[:-1]), says("user", "[ INST ]")])
