"""Settings that are out of range or do not go together are refused with what was wanted."""

import math
from typing import Any

import pytest

from model.generation.settings import Settings, check_eos_ids, check_prompts
from parallel import RefusedError

GOOD: dict[str, Any] = {"max_gen_len": 8, "max_seq_len": 64}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_gen_len": 0}, "max_gen_len is 0; wanted 1 or more tokens"),
        ({"temperature": -1}, "temperature is -1; wanted a number of 0 (greedy) to 10"),
        ({"temperature": math.nan}, "temperature is nan; wanted"),
        ({"top_p": 1.5}, "top_p is 1.5; wanted a number of 0 (the likeliest token) to 1"),
        ({"top_k": -1}, "top_k is -1; wanted a whole number, 0 (no filter) or more"),
        ({"min_p": 2}, "min_p is 2; wanted a number of 0 (no filter) to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; wanted a number of 0.01 to 100"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf; wanted"),
        ({"length_penalty": math.nan}, "length_penalty is nan; wanted"),
        ({"top_k": 2.5}, "top_k is 2.5; wanted a whole number"),
        ({"temperature": "0.6"}, "temperature is '0.6'; wanted a number of 0 (greedy) to 10"),
        ({"max_gen_len": True}, "max_gen_len is True; wanted 1 or more tokens"),
        ({"num_beams": 0}, "num_beams is 0; wanted 1"),
        ({"early_stopping": "often"}, "early_stopping is 'often'; wanted true, false or 'never'"),
        ({"num_beams": 2, "num_return_sequences": 3}, "a beam search has as many answers as beams"),
        ({"num_return_sequences": 2, "temperature": 0}, "where all answers would be the same"),
        ({"num_return_sequences": 2, "temperature": 1e-6}, "where all answers would be the same"),
        ({"penalty_alpha": 0.6}, "top_k is 0 with penalty_alpha 0.6"),
        ({"penalty_alpha": 0.6, "top_k": 1}, "wanted a top_k of 2 to 64, as --top_k 4"),
        ({"penalty_alpha": 0.6, "top_k": 4, "num_beams": 2}, "contrastive search has one answer to a prompt"),
        ({"num_beams": 2, "top_logprobs": 2}, "a beam search does not keep the tokens that it did not take"),
        ({"top_logprobs": 21}, "top_logprobs is 21; wanted a whole number of 0 to 20"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Settings(**{**GOOD, **changed})
    assert message in str(refused.value)


def test_settings_tell_which_search_it_is_and_how_many_sequences_a_prompt_takes() -> None:
    def told(**changed: Any) -> tuple[str, int]:
        settings = Settings(**{**GOOD, **changed})
        return settings.search, settings.width

    assert told() == ("sampling", 1)
    assert told(num_return_sequences=3) == ("sampling", 3)
    assert told(num_beams=4, num_return_sequences=2, temperature=0) == ("beams", 4)
    assert told(penalty_alpha=0.6, top_k=4) == ("contrastive", 1)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([1, 2], "prompt 0 is 1; wanted a list of token ids"),
        ("ab", "prompts are str; wanted a list of lists of token ids"),
        ([[1], [2, 9]], "prompt 1 holds 9; wanted token ids of 0 to 8"),
    ],
)
def test_prompts_that_are_no_lists_of_ids_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        check_prompts(prompts, vocab_size=9, max_seq_len=4)


@pytest.mark.parametrize(
    ("eos_ids", "message"), [(2, "is 2; wanted a list"), ([9], "holds 9; wanted token ids of 0 to 8")]
)
def test_end_tokens_that_are_none_are_refused(eos_ids: Any, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        check_eos_ids(eos_ids, vocab_size=9)
