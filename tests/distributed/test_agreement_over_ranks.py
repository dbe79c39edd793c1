"""Ranks that no longer agree are found and named: a replicated weight, an output, a token; cut weights by checksums."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.generation.agreement import EVERY_STEPS, Agreement
from model.generation.decoder import Decoder
from model.generation.generate import Generation
from model.generation.settings import Settings
from model.norm import RMSNorm
from model.params import Params
from model.transformer import Transformer
from model.weight_sums import WeightSums
from parallel import Mesh, World, start_world
from parallel.position import position
from tests.distributed.pool import BODY_LIMIT_S, Pool
from tests.distributed.threads import run_as_threads
from tests.distributed.verdicts import Verdict, the_same_on_all, verdict

PARAMS = Params(
    dim=32,
    n_layers=3,
    n_heads=8,
    n_kv_heads=4,
    ffn_dim=48,
    vocab_size=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
PROMPTS = [[1, 7, 3, 39, 12], [5, 2], [9]]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
TWO = pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
# What each norm works on: the first of all, those of a layer in the middle, the last.
NORMS = ("layers.0.attention_norm", "layers.1.attention_norm", "layers.1.ffn_norm", "norm")
WHAT_TO_DO = (
    "; the memory or the processor of a rank that differs may be damaged: start again, and without its machine where "
    "that comes back (--check_weights also watches the weights that are cut)"
)
# 400 steps take two seconds, and many times that where others use the machine.
LONG_LIMIT_S = 90.0
# Layers draw their weights from the one generator of a process.
_drawing = threading.Lock()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(mesh: Mesh, dtype: torch.dtype = torch.float32, exact: bool = False) -> Transformer:
    """The same seed draws the same uncut weights on any mesh."""
    with _drawing:
        torch.manual_seed(3)
        model = Transformer(PARAMS, mesh, exact=exact)
        for name, weight in model.named_parameters():
            if "norm" in name:
                # Not drawn: vector instructions of another kind draw other numbers.
                weight.data.copy_((torch.arange(PARAMS.dim) * 5 % 8 + 4) / 8)
            elif exact:
                torch.nn.init.normal_(weight, 0.0, 0.2)
    return model.to(dtype).requires_grad_(False).eval()


def decoder_of(model: Transformer, steps: int) -> Decoder:
    settings = Settings(max_gen_len=steps + 1, max_seq_len=512, temperature=0.0)
    return Decoder(model, PROMPTS, settings, range(len(PROMPTS)))


def one_unit_more(weight: Tensor, number: int = 5) -> None:
    """One unit in the last place, in place."""
    words = weight.view(torch.int32 if weight.dtype == torch.float32 else torch.int16).flatten()
    words[number] += 1


@dataclass(frozen=True, slots=True)
class Fault:
    """Before `step` something happens on these ranks: a norm's weight changes by one unit in the last place, or the
    rotary table does, or a token of a row becomes 63."""

    what: str
    ranks: tuple[int, ...] = (1,)
    step: int = 0
    row: int = 1

    def strike(self, model: Transformer, decoder: Decoder, tokens: list[int]) -> None:
        if self.what == "token":
            tokens[self.row] = 63
        elif self.what == "prompt":
            decoder.ids[self.row][0] = 63
        elif self.what == "rotary":
            model.turns(1)[3, 1] *= 1j
        else:
            one_unit_more(dict(model.named_parameters())[self.what])


@torch.inference_mode()
def decode(mesh: Mesh, fault: Fault | None, steps: int = 0, dtype: torch.dtype = torch.float32) -> Verdict:
    """Greedy decoding; the tokens, or how it ended."""
    model = model_of(mesh, dtype)
    decoder = decoder_of(model, steps)

    def struck(step: int) -> bool:
        return fault is not None and fault.step == step and mesh.rank in fault.ranks

    def act() -> list[list[int]]:
        if struck(0) and fault is not None:
            fault.strike(model, decoder, [])
        logits_BV = decoder.prefill()
        rows = range(len(PROMPTS))
        for step in range(1, steps + 1):
            tokens = [row[0] for row in decoder.decide(logits_BV, (len(PROMPTS), 1), lambda: logits_BV.argmax(-1))]  # noqa: B023
            if struck(step) and fault is not None:
                fault.strike(model, decoder, tokens)
            logits_BV = decoder.advance(tokens, rows)
        return decoder.ids

    return verdict(act)


def as_processes(world: World, fault: Fault | None, steps: int = 0, dtype: torch.dtype = torch.float32) -> Verdict:
    return decode(world.mesh, fault, steps, dtype)


def sentence(step: int, who: str, what: str) -> Verdict:
    return "RankFailedError", f"the ranks no longer agree at step {step}: {who}, first in {what}{WHAT_TO_DO}"


@DTYPES
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_weight_that_is_one_unit_in_the_last_place_off_on_a_rank_is_named(norm: str, dtype: torch.dtype) -> None:
    found = run_as_threads(4, lambda mesh: decode(mesh, Fault(f"{norm}.weight"), dtype=dtype))
    assert the_same_on_all(found) == sentence(0, "rank 1 differs from ranks 0, 2 and 3", f"{norm}.weight")


@TWO
@DTYPES
@pytest.mark.parametrize("norm", ["layers.1.ffn_norm", "norm"])
def test_of_two_processes_nobody_can_say_which_is_right(ranks: Pool, norm: str, dtype: torch.dtype) -> None:
    found = ranks.run(as_processes, Fault(f"{norm}.weight"), 0, dtype)
    assert the_same_on_all(found) == sentence(0, "ranks 0 and 1 differ", f"{norm}.weight")


@pytest.mark.parametrize(
    ("at", "who"),
    [
        ((0,), "rank 0 differs from ranks 1, 2 and 3"),
        ((0, 2), "ranks 1 and 3 differ from ranks 0 and 2"),
        ((1, 2, 3), "rank 0 differs from ranks 1, 2 and 3"),
    ],
)
def test_the_ranks_that_have_the_same_are_told_together(at: tuple[int, ...], who: str) -> None:
    found = run_as_threads(4, lambda mesh: decode(mesh, Fault("norm.weight", at)))
    assert the_same_on_all(found) == sentence(0, who, "norm.weight")


@TWO
def test_a_weight_that_changes_while_decoding_is_found_at_the_next_check(ranks: Pool) -> None:
    found = ranks.run(as_processes, Fault("layers.1.attention_norm.weight", step=70), 2 * EVERY_STEPS)
    what = "layers.1.attention_norm.weight"
    assert the_same_on_all(found) == sentence(2 * EVERY_STEPS, "ranks 0 and 1 differ", what)


@TWO
def test_a_token_that_is_flipped_on_one_rank_is_named_with_its_step(ranks: Pool) -> None:
    kind, text = the_same_on_all(ranks.run(as_processes, None, EVERY_STEPS))
    assert kind == "returned"
    # The token that is put behind its row at step 41 is the one chosen at step 40; row 1 has a prompt of 2.
    right = json.loads(text)[1][2 + 40]
    assert right != 63
    found = ranks.run(as_processes, Fault("token", step=41), EVERY_STEPS)
    what = f"the token chosen at step 40 of row 1 ({right} on rank 0; 63 on rank 1)"
    assert the_same_on_all(found) == sentence(EVERY_STEPS, "ranks 0 and 1 differ", what)


def test_of_several_tokens_the_one_that_was_chosen_first_is_named() -> None:
    """Row 0 has the longer prompt, so that its later token stands further back."""

    @torch.inference_mode()
    def act(mesh: Mesh) -> Verdict:
        agreement = Agreement(model_of(mesh))
        ids = [list(prompt) for prompt in PROMPTS]
        agreement.compare(0, ids, torch.zeros(3, 4))
        # Three rows are now six, as where two answers are drawn for each.
        ids = [[*ids[row // 2], 20, 21, 22, 23] for row in range(6)]
        if mesh.rank == 2:
            ids[0][5 + 3], ids[3][2 + 1] = 30, 31
        return verdict(lambda: agreement.close(4, ids))

    what = "the token chosen at step 1 of row 3 (21 on ranks 0, 1 and 3; 31 on rank 2)"
    found = the_same_on_all(run_as_threads(4, act))
    assert found == sentence(4, "rank 2 differs from ranks 0, 1 and 3", what)


def test_a_prompt_that_differs_is_named_with_the_place_of_its_token() -> None:
    found = run_as_threads(2, lambda mesh: decode(mesh, Fault("prompt", row=2)))
    what = "token 0 of the prompt of row 2 (9 on rank 0; 63 on rank 1)"
    assert the_same_on_all(found) == sentence(0, "ranks 0 and 1 differ", what)


def test_a_token_that_a_rank_lacks_is_named() -> None:
    @torch.inference_mode()
    def act(mesh: Mesh) -> Verdict:
        agreement = Agreement(model_of(mesh))
        agreement.compare(0, PROMPTS, torch.zeros(3, 4))
        return verdict(lambda: agreement.close(1, [[*row, 8][: 2 if mesh.rank else 9] for row in PROMPTS]))

    what = "token 2 of the prompt of row 0 (3 on rank 0; none on rank 1)"
    assert the_same_on_all(run_as_threads(2, act)) == sentence(1, "ranks 0 and 1 differ", what)


def test_the_rotary_table_is_compared() -> None:
    found = run_as_threads(3, lambda mesh: decode(mesh, Fault("rotary", (2,), step=10), EVERY_STEPS))
    assert the_same_on_all(found) == sentence(EVERY_STEPS, "rank 2 differs from ranks 0 and 1", "the rotary table")


@pytest.mark.parametrize("norm", ["layers.0.ffn_norm", "layers.2.attention_norm", "norm"])
def test_a_rank_whose_weights_are_right_but_that_computes_a_norm_wrong_is_named(norm: str) -> None:
    def act(mesh: Mesh) -> Verdict:
        model = model_of(mesh)

        def spoil(_module: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
            if mesh.rank == 2:
                one_unit_more(outputs[1][-1, -1], 31)

        model.get_submodule(norm).register_forward_hook(spoil)
        with torch.inference_mode():
            return verdict(decoder_of(model, 1).prefill)

    found = run_as_threads(3, act)
    assert the_same_on_all(found) == sentence(0, "rank 2 differs from ranks 0 and 1", f"the output of {norm}")


def test_logits_that_differ_are_named_with_their_row() -> None:
    @torch.inference_mode()
    def act(mesh: Mesh) -> Verdict:
        logits_BV = torch.arange(300.0).view(3, 100)
        if mesh.rank == 3:
            one_unit_more(logits_BV[2], 99)
        return verdict(lambda: Agreement(model_of(mesh)).compare(0, PROMPTS, logits_BV))

    what = "the logits of row 2"
    found = the_same_on_all(run_as_threads(4, act))
    assert found == sentence(0, "rank 3 differs from ranks 0, 1 and 2", what)


def test_what_is_first_in_the_forward_pass_is_named_where_several_differ() -> None:
    @torch.inference_mode()
    def act(mesh: Mesh) -> Verdict:
        model = model_of(mesh)
        if mesh.rank:
            for name in (f"{norm}.weight" for norm in reversed(NORMS[1:])):
                one_unit_more(dict(model.named_parameters())[name])
        return verdict(decoder_of(model, 1).prefill)

    what = "layers.1.attention_norm.weight"
    assert the_same_on_all(run_as_threads(2, act)) == sentence(0, "ranks 0 and 1 differ", what)


SEARCHES: dict[str, dict[str, Any]] = {
    "sampling": {"num_return_sequences": 2, "temperature": 0.8, "top_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}
Answers = list[list[int]]


def generation_of(model: Transformer, steps: int, how: dict[str, Any]) -> Generation:
    return Generation(model, PROMPTS, Settings(max_gen_len=steps, max_seq_len=512, **how), range(len(PROMPTS)))


def answers_compared_at_every_step(
    world: World, how: dict[str, Any], dtype: torch.dtype, exact: bool, steps: int
) -> tuple[Answers, Answers]:
    """The answers of a run that is compared at every step, and of one as it is."""
    model = model_of(world.mesh, dtype, exact)
    both = []
    for every in (1, EVERY_STEPS):
        generation = generation_of(model, steps, how)
        generation.decoder._agreement = Agreement(model, every)
        answers: Answers = [[] for _ in range(len(PROMPTS) * generation.settings.num_return_sequences)]
        for event in generation.events():
            if event.token is not None:
                answers[event.row].append(event.token)
        both.append(answers)
    return both[0], both[1]


@pytest.mark.parametrize(
    ("search", "dtype", "exact", "steps"),
    [
        ("sampling", torch.float32, False, 200),
        ("sampling", torch.bfloat16, False, 60),
        ("sampling", torch.float32, True, 60),
        ("beams", torch.float32, False, 60),
        ("contrastive", torch.bfloat16, False, 60),
    ],
)
@TWO
def test_healthy_ranks_raise_no_alarm_and_give_the_same_tokens_however_often_they_are_compared(
    ranks: Pool, search: str, dtype: torch.dtype, exact: bool, steps: int
) -> None:
    how = SEARCHES[search]
    found = ranks.run(answers_compared_at_every_step, how, dtype, exact, steps, limit_s=LONG_LIMIT_S)
    assert found[0] == found[1]
    compared, plain = found[0]
    assert compared == plain
    assert max(map(len, compared)) == steps


def searched_with_a_fault(world: World, how: dict[str, Any]) -> Verdict:
    """A norm's weight changes on rank 1 before step 3; compared at every second step."""
    model = model_of(world.mesh)
    generation = generation_of(model, 12, how)
    generation.decoder._agreement = Agreement(model, every=2)

    def strike(_phase: str, step: int) -> None:
        if world.mesh.rank == 1 and step == 3:
            one_unit_more(model.layers[1].ffn_norm.weight)  # type: ignore[union-attr, arg-type]

    # Not a hook of the model: a recorded step runs without its modules.
    position.listener = strike
    try:
        return verdict(lambda: list(generation.events()))
    finally:
        position.listener = None


@pytest.mark.parametrize("search", SEARCHES)
@TWO
def test_every_search_is_watched(ranks: Pool, search: str) -> None:
    found = ranks.run(searched_with_a_fault, SEARCHES[search])
    assert the_same_on_all(found) == sentence(4, "ranks 0 and 1 differ", "layers.1.ffn_norm.weight")


@torch.inference_mode()
def closed_with_a_fault(world: World) -> tuple[Verdict, Verdict]:
    model = model_of(world.mesh)
    agreement = Agreement(model)
    agreement.compare(0, PROMPTS, torch.zeros(3, 4))
    healthy = verdict(lambda: agreement.close(5, PROMPTS))
    if world.mesh.rank:
        one_unit_more(model.norm.weight)
    return healthy, verdict(lambda: agreement.close(5, PROMPTS))


@TWO
def test_what_happens_after_the_last_check_is_found_at_the_end(ranks: Pool) -> None:
    healthy, struck = zip(*ranks.run(closed_with_a_fault), strict=True)
    assert the_same_on_all(list(healthy)) == ("returned", "None")
    assert the_same_on_all(list(struck)) == sentence(5, "ranks 0 and 1 differ", "norm.weight")


def test_a_step_that_is_not_compared_has_no_hooks_and_a_rank_alone_never() -> None:
    def hooks(mesh: Mesh) -> list[int]:
        model = model_of(mesh)
        agreement, counts = Agreement(model), []
        for step in (0, 1, EVERY_STEPS):
            with agreement.watching(step):
                counts.append(sum(len(module._forward_hooks) for module in model.modules()))
            counts.append(sum(len(module._forward_hooks) for module in model.modules()))
        return counts

    norms = 2 * PARAMS.n_layers + 1
    assert run_as_threads(2, hooks) == [[norms, 0, 0, 0, norms, 0]] * 2
    assert run_as_threads(1, hooks) == [[0] * 6]


def start_with_other_instructions_on_rank_1(_size: int) -> World:
    if os.environ["RANK"] == "1":
        # Read by torch when it first chooses a kernel.
        os.environ["ATEN_CPU_CAPABILITY"] = "default"
    return start_world(device="cpu", timeout_s=BODY_LIMIT_S)


def capability(_world: World) -> str:
    return torch.backends.cpu.get_cpu_capability()


@torch.inference_mode()
def with_a_norm_that_rounds_apart(world: World, weight: str) -> Verdict:
    """Rank 1's norms and rotary table are as another processor might round them; and a weight is another number."""
    model = model_of(world.mesh)
    if world.mesh.rank == 1:
        for norm in (module for module in model.modules() if isinstance(module, RMSNorm)):
            norm.register_forward_hook(lambda _module, _inputs, outputs: one_unit_more(outputs[1][:, -1]))
        one_unit_more(torch.view_as_real(model.turns(64)))
        if weight:
            one_unit_more(dict(model.named_parameters())[weight])
    return verdict(lambda: decoder_of(model, 1).prefill().shape)


def test_processors_of_several_kinds_may_round_apart_but_not_hold_other_weights(tmp_path: Path) -> None:
    ranks = Pool(2, tmp_path, start_with_other_instructions_on_rank_1)
    try:
        if len(kinds := set(ranks.run(capability))) == 1:
            pytest.skip(f"this processor has one kind of instructions only ({kinds})")
        found = ranks.run(with_a_norm_that_rounds_apart, "")
        assert the_same_on_all(found) == ("returned", "torch.Size([3, 64])")
        found = ranks.run(with_a_norm_that_rounds_apart, "norm.weight")
        assert the_same_on_all(found) == sentence(0, "ranks 0 and 1 differ", "norm.weight")
    finally:
        ranks.close()


@TWO
def test_processors_of_one_kind_may_not_round_apart(ranks: Pool) -> None:
    found = ranks.run(with_a_norm_that_rounds_apart, "norm.weight")
    assert the_same_on_all(found) == sentence(0, "ranks 0 and 1 differ", "the rotary table")


@torch.inference_mode()
def with_a_changed_cut_weight(world: World, name: str, at: tuple[int, ...], exact: bool) -> tuple[Verdict, Verdict]:
    """What the comparison of ranks says, and what the checksums say."""
    model = model_of(world.mesh, torch.bfloat16, exact)
    sums = WeightSums(model)
    sums.check(world)
    if world.mesh.rank in at:
        cut = next(weight for own, weight in reversed(list(model.named_parameters())) if own.startswith(name))
        one_unit_more(cut, 7)
    return verdict(lambda: decoder_of(model, 1).prefill().shape), verdict(lambda: sums.check(world))


CHANGED = (
    ": the memory of that rank is damaged, or its files were written over while the model runs from them; what was "
    "generated since the last check may be wrong: start again, and without that machine where this comes back"
)


@pytest.mark.parametrize("name", ["tok_embeddings.weight", "layers.1.feed_forward.w2.weight", "output.weight"])
@TWO
def test_a_cut_weight_that_has_changed_is_found_by_its_checksum_alone(ranks: Pool, name: str) -> None:
    compared, summed = zip(*ranks.run(with_a_changed_cut_weight, name, (1,), False), strict=True)
    assert the_same_on_all(list(compared)) == ("returned", "torch.Size([3, 64])")
    wanted = f"rank 1: {name} is not what was loaded{CHANGED}"
    assert the_same_on_all(list(summed)) == ("RankFailedError", wanted)


@TWO
def test_changed_weights_of_several_ranks_are_all_told(ranks: Pool) -> None:
    """In the exact mode ranks hold blocks of different names."""
    _, summed = zip(*ranks.run(with_a_changed_cut_weight, "layers.2.attention.wq", (0, 1), True), strict=True)
    kind, text = the_same_on_all(list(summed))
    assert kind == "RankFailedError"
    first, last = (f"layers.2.attention.wq.weight.{block}" for block in (3, 7))
    assert text == f"rank 0: {first} is not what was loaded; rank 1: {last} is not what was loaded{CHANGED}"
