"""One process, two trained models: recorded texts, and two implementations that share no code with ours."""

import json

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model import Llama
from tests.golden.conftest import END_OF_STORY, MODELS, Case, build, cases_of, llama_of, reference_of
from tests.reference import Reference, greedy, logprobs, merged_weights

NAMES = ["stories260K", "stories15M"]
PLACES = [(name, place) for name in NAMES for place in range(3)]
# Logits of up to 30 with relative rounding errors of about 1e-6 (float32 sums in another order): 3e-5 at
# the worst, and 1e-4 leaves room for another processor.
NEAR = 1e-4


def generated(llama: Llama, cases: list[Case]) -> list[tuple[list[int], str]]:
    """Greedy tokens and how each row ended."""
    longest = max(len(case.tokens) for case in cases)
    generation = llama.start([case.prompt_tokens for case in cases], longest, 0, eos_ids=[END_OF_STORY])
    tokens: list[list[int]] = [[] for _ in cases]
    ends = [""] * len(cases)
    for event in generation.events():
        if event.token is not None:
            tokens[event.row].append(event.token)
        if event.finish_reason is not None:
            ends[event.row] = event.finish_reason
    return list(zip(tokens, ends, strict=True))


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_prompt_alone_goes_on_as_recorded(name: str, place: int) -> None:
    case = cases_of(name)[place]
    # A story that stopped is given room for one token more, where the end token comes.
    room = len(case.tokens) + (case.finish_reason == "stop")
    generation = llama_of(name).start([case.prompt_tokens], room, 0, eos_ids=[END_OF_STORY])
    events = list(generation.events())
    assert [event.token for event in events if event.token is not None] == case.tokens
    assert events[-1].finish_reason == case.finish_reason


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_all_prompts_goes_on_as_each_alone(name: str) -> None:
    cases = cases_of(name)
    assert generated(llama_of(name), cases) == [(case.tokens, case.finish_reason) for case in cases]


@pytest.mark.parametrize("name", NAMES)
def test_text_completion_gives_the_recorded_text(name: str) -> None:
    cases = cases_of(name)
    answers = llama_of(name).text_completion([case.prompt for case in cases], temperature=0, max_gen_len=60)
    for case, answer in zip(cases, answers, strict=True):
        assert case.text.startswith(answer["generation"])
        # 60 tokens have two letters each at the least.
        assert len(answer["generation"]) > 120


def test_the_reference_goes_on_as_recorded() -> None:
    """What everything is compared with agrees with what others recorded."""
    for name, place in PLACES:
        case, reference = cases_of(name)[place], reference_of(name)
        assert greedy(reference, case.prompt_tokens, 6, (END_OF_STORY,)) == case.tokens[:6]
        likeliest = reference.logits([*case.prompt_tokens, *case.tokens]).argmax(-1).tolist()
        first = len(case.prompt_tokens) - 1
        assert likeliest[first : first + len(case.tokens)] == case.tokens


def as_hugging_face(name: str) -> LlamaForCausalLM:
    """The same weights under Hugging Face's names; the rows of wq and wk put from neighbours to halves."""
    raw = json.loads((MODELS / name / "params.json").read_text())
    weights = merged_weights(MODELS / name)
    heads, kv_heads = raw["n_heads"], raw.get("n_kv_heads", raw["n_heads"])
    config = LlamaConfig(
        vocab_size=len(weights["output.weight"]),
        hidden_size=raw["dim"],
        intermediate_size=len(weights["layers.0.feed_forward.w1.weight"]),
        num_hidden_layers=raw["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=raw["dim"] // heads,
        rms_norm_eps=raw["norm_eps"],
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="eager",
    )
    parts = {
        "attention.wo": "self_attn.o_proj",
        "attention.wv": "self_attn.v_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    ends = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    state = {f"{theirs}.weight": weights[f"{ours}.weight"] for ours, theirs in ends.items()}
    for layer in range(raw["n_layers"]):
        mine, theirs = f"layers.{layer}", f"model.layers.{layer}"
        state |= {f"{theirs}.{to}.weight": weights[f"{mine}.{part}.weight"] for part, to in parts.items()}
        for part, count in (("q", heads), ("k", kv_heads)):
            neighbours = weights[f"{mine}.attention.w{part}.weight"]
            # [heads, pairs, 2, dim] to [heads, 2, pairs, dim].
            halves = neighbours.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
            state[f"{theirs}.self_attn.{part}_proj.weight"] = halves
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture(scope="module", params=NAMES)
def three(request: pytest.FixtureRequest) -> tuple[Llama, Reference, LlamaForCausalLM]:
    """A model as ours, as the reference and as transformers'."""
    return llama_of(request.param), reference_of(request.param), as_hugging_face(request.param)


def our_logits(llama: Llama, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return llama.model.logits(llama.model(torch.tensor([tokens])))[0]


def name_of(llama: Llama) -> str:
    return NAMES[llama.model.params.n_layers == 6]


def test_logits_at_every_position_equal_the_references_and_transformers(
    three: tuple[Llama, Reference, LlamaForCausalLM],
) -> None:
    llama, reference, hugging_face = three
    for case in cases_of(name_of(llama)):
        tokens = [*case.prompt_tokens, *case.tokens]
        ours = our_logits(llama, tokens)
        with torch.inference_mode():
            theirs = hugging_face(torch.tensor([tokens])).logits[0]
        for expected in (reference.logits(tokens), theirs):
            # Float32 sums in another order, over six layers, relative to the largest logit.
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_logprobs_of_prompt_and_answer_equal_the_references_and_transformers(
    three: tuple[Llama, Reference, LlamaForCausalLM],
) -> None:
    llama, reference, hugging_face = three
    cases = cases_of(name_of(llama))
    tokens, known = llama.generate([case.prompt_tokens for case in cases], 60, 0, logprobs=True, echo=True)
    assert known is not None
    for case, row, values in zip(cases, tokens, known, strict=True):
        assert row[: len(case.prompt_tokens)] == case.prompt_tokens
        assert len(row) == len(values) == len(case.prompt_tokens) + 60
        assert values[0] == 0.0
        assert values[1:] == pytest.approx(logprobs(reference, row), abs=NEAR)
        with torch.inference_mode():
            theirs = hugging_face(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        assert values[1:] == pytest.approx(theirs[torch.arange(len(row) - 1), row[1:]].tolist(), abs=NEAR)


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_without_echo_are_those_of_the_answer_alone(name: str) -> None:
    case = cases_of(name)[1]
    tokens, known = llama_of(name).generate([case.prompt_tokens], 30, 0, logprobs=True)
    assert known is not None
    assert tokens == [case.tokens[:30]]
    whole = logprobs(reference_of(name), [*case.prompt_tokens, *tokens[0]])
    assert known[0] == pytest.approx(whole[-30:], abs=NEAR)


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_of_sampled_tokens_are_those_of_the_model_at_temperature_1(name: str) -> None:
    """Temperature and top_p decide what is drawn; the probability told is the model's own, as Meta's."""
    case = cases_of(name)[2]
    tokens, known = llama_of(name).generate([case.prompt_tokens], 40, 1.3, 0.95, logprobs=True, echo=True)
    assert known is not None
    assert known[0][1:] == pytest.approx(logprobs(reference_of(name), tokens[0]), abs=NEAR)


def test_the_same_seed_draws_the_same_tokens_in_any_batch() -> None:
    prompts = [case.prompt_tokens for case in cases_of("stories260K")]
    runs = []
    for sizes in ([3], [1, 1, 1], [2, 1]):
        llama, rows = build("stories260K", seed=5), []
        for size in sizes:
            first = len(rows)
            rows += llama.generate(prompts[first : first + size], 40, 0.9, 0.95)[0]
        runs.append(rows)
    assert runs[0] == runs[1] == runs[2]
    other = build("stories260K", seed=6).generate(prompts, 40, 0.9, 0.95)[0]
    assert all(mine != theirs for mine, theirs in zip(runs[0], other, strict=True))
