"""Scores: which window scores which token, what is made of the log-probabilities, and that no more is computed."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.generation.scoring import Score, Scoring
from model.generation.windows import choose_stride, windows_of
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh, RankFailedError, RefusedError

PARAMS = Params(
    dim=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    ffn_dim=24,
    vocab_size=40,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
quick = settings(max_examples=200, deadline=None, database=None)


def tiny() -> Transformer:
    torch.manual_seed(3)
    return Transformer(PARAMS, Mesh()).requires_grad_(False)


def tokens_of(count: int) -> list[int]:
    return [(7 * place + place // 5) % PARAMS.vocab_size for place in range(count)]


def score_of(logprobs: list[float]) -> Score:
    return Score(tokens=[1] * (len(logprobs) + 1), logprobs=logprobs, window_tokens=8, stride=4, windows=1)


@quick
@given(st.integers(2, 300), st.integers(2, 40), st.data())
def test_every_token_but_the_first_is_scored_once_in_the_first_window_that_holds_it(
    tokens: int, max_seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, max_seq_len - 1))
    windows = windows_of(tokens, max_seq_len, stride)
    scored = {token: window for window in windows for token in range(window.first, window.stop)}
    assert sorted(scored) == list(range(1, tokens))
    assert sum(window.stop - window.first for window in windows) == tokens - 1
    for token, window in scored.items():
        # Windows stand at multiples of the stride; the first that reaches over the token.
        start = stride * max(0, math.ceil((token + 1 - max_seq_len) / stride))
        assert window.start == start
        assert window.start < token < window.stop <= start + max_seq_len


def test_a_window_moves_on_by_half_of_it_unless_told_otherwise() -> None:
    assert choose_stride(None, 512) == 256
    assert choose_stride(None, 3) == 1
    assert choose_stride(511, 512) == 511


@pytest.mark.parametrize(
    ("stride", "max_seq_len", "said"),
    [
        (512, 512, "stride is 512 but max_seq_len is 512; .* give a stride of 1 to 511, or raise max_seq_len"),
        (0, 512, "stride is 0 but max_seq_len is 512"),
        (None, 1, "max_seq_len is 1; .* wanted 2 or more"),
    ],
)
def test_a_stride_that_would_leave_a_token_with_nothing_before_it_is_refused(
    stride: int | None, max_seq_len: int, said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        choose_stride(stride, max_seq_len)


def test_a_text_without_a_token_behind_the_first_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"the text has 1 token; the first .* wanted 2 or more"):
        Scoring(tiny(), [1], 8, 2)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    score = score_of([-math.log(40)] * 9)
    assert score.perplexity == pytest.approx(40, rel=1e-14)
    assert score.nats_per_token == pytest.approx(math.log(40), rel=1e-15)
    # Nine tokens of log2(40) bits over 12 bytes.
    assert score.bits_per_byte(12) == pytest.approx(9 * math.log2(40) / 12, rel=1e-14)


def test_sums_lose_nothing_to_a_large_number_before() -> None:
    # Each 1 alone is lost behind 1e16 in a running sum of doubles.
    assert score_of([-1e16, -1.0, -1.0]).nats == 1e16 + 2


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert score_of([-2000.0]).perplexity == math.inf


def plain_logprobs(model: Transformer, tokens: list[int], max_seq_len: int, stride: int) -> list[float]:
    """Token by token, each with a pass of its own over what stands before it in its window: no cache, no batch."""
    found = []
    for token in range(1, len(tokens)):
        start = 0
        while start + max_seq_len <= token:
            start += stride
        logits_V = model.logits(model(torch.tensor([tokens[start:token]])))[0, -1]
        found.append(float(logits_V.double().log_softmax(-1)[tokens[token]]))
    return found


@pytest.mark.parametrize(
    ("count", "max_seq_len", "stride", "batch_size"),
    [(2, 8, None, 4), (8, 8, None, 4), (9, 8, None, 4), (50, 8, 3, 4), (50, 8, 7, 1), (50, 8, 1, 64), (20, 2, 1, 3)],
)
def test_scores_are_those_of_a_pass_for_each_token(
    count: int, max_seq_len: int, stride: int | None, batch_size: int
) -> None:
    model, tokens = tiny(), tokens_of(count)
    score = Scoring(model, tokens, max_seq_len, batch_size, stride).run()
    # Float32 sums over other shapes may be taken in another order: log-probabilities of about 4, to their sixth place.
    assert score.logprobs == pytest.approx(plain_logprobs(model, tokens, max_seq_len, score.stride), abs=1e-5)
    assert (score.tokens, score.scored_tokens, score.window_tokens) == (tokens, count - 1, max_seq_len)


def test_pieces_of_a_long_window_are_put_together_whole() -> None:
    """Logits are made of so many rows at a time, fewer than this window has."""
    model, tokens = tiny(), tokens_of(700)
    score = Scoring(model, tokens, 400, 2, 150).run()
    whole = model.logits(model(torch.tensor([tokens[:400]])))[0, :-1].log_softmax(-1)
    wanted = whole[torch.arange(399), torch.tensor(tokens[1:400])].tolist()
    assert score.logprobs[:399] == pytest.approx(wanted, abs=1e-5)


def test_logits_are_made_of_no_row_that_is_not_scored() -> None:
    model, rows = tiny(), list[int]()

    def count(_module: nn.Module, _arguments: tuple[Tensor, ...], out: Tensor) -> None:
        rows.append(out[..., 0].numel())

    model.output.register_forward_hook(count)
    score = Scoring(model, tokens_of(50), 8, 4, 3).run()
    # And those behind each window, which every prefill has.
    assert sum(rows) == 49 + score.windows


def test_progress_counts_the_scored_tokens() -> None:
    told: list[tuple[int, int]] = []
    Scoring(tiny(), tokens_of(30), 8, 2, 4).run(lambda done, total: told.append((done, total)))
    # Two windows of 8: 7 and 4 tokens; then 8 a batch.
    assert told == [(11, 29), (19, 29), (27, 29), (29, 29)]


def test_the_cache_is_that_of_a_batch_of_windows() -> None:
    model = tiny()
    windows_of_8 = Scoring(model, tokens_of(50), 8, 4, 4)
    assert windows_of_8.cache_bytes == model.cache_bytes(4, 9)
    assert Scoring(model, tokens_of(5), 8, 4, 4).cache_bytes <= model.cache_bytes(1, 7)


def test_logits_that_are_not_finite_are_told_and_not_summed() -> None:
    model = Transformer(replace(PARAMS, vocab_size=30), Mesh()).requires_grad_(False)
    model.output.weight[17] = torch.inf
    with pytest.raises(RankFailedError, match=r"logits of prompt 0 at step 0 are not finite .* from rank 0"):
        Scoring(model, [1, 2, 3, 4], 8, 2).run()
