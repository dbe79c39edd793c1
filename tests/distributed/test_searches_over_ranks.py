"""Beam search and contrastive search with the model cut over ranks: each rank holds the answers of the uncut model.

The ranks reorder their own shares of the KV cache; what they choose comes from rank 0.
"""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from model.generation.beams import search_beams
from model.generation.contrastive import search_contrastive
from model.generation.decoder import Decoder
from model.generation.settings import Event, Settings
from parallel import Mesh, RankFailedError
from tests.distributed.pool import Pool
from tests.distributed.threads import run_as_threads
from tests.golden.test_one_process import as_hugging_face
from tests.hugging_face import save_llama
from tests.searches import (
    Found,
    load,
    one_thread,  # noqa: F401
    plain_contrastive,
    require_beams,
    searched,
    searched_in_a_process,
    transformers_beams,
)

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
# One prompt has no room, and one little; 17 is a token with which many answers end.
PROMPTS = [[1, 9, 30, 4, 12], [1, 7], [1, *range(3, 22)], [1, 33, 5, 28, *range(3, 16)]]
BEAMS = Settings(
    num_beams=4,
    num_return_sequences=3,
    max_gen_len=14,
    max_seq_len=20,
    length_penalty=0.5,
    repetition_penalty=1.2,
    logprobs=True,
    eos_ids=frozenset({17, 2}),
)
CONTRASTIVE = Settings(
    penalty_alpha=0.6, top_k=4, max_gen_len=14, max_seq_len=20, logprobs=True, eos_ids=frozenset({17, 2})
)


def searches(folder: Path, mesh: Mesh) -> tuple[list[Found], list[Found]]:
    return searched(folder, PROMPTS, BEAMS, mesh), searched(folder, PROMPTS, CONTRASTIVE, mesh)


@torch.inference_mode()
def require_searches(found: list[tuple[list[Found], list[Found]]], model: LlamaForCausalLM) -> None:
    """The same on every rank, to the bit, and what the uncut model has."""
    beams, contrastive = found[0]
    assert all(one == found[0] for one in found)
    known = {tuple(prompt): transformers_beams(model, prompt, BEAMS) for prompt in PROMPTS if len(prompt) < 20}
    require_beams(beams, PROMPTS, BEAMS, lambda prompt: known[tuple(prompt)])
    for prompt, one in zip(PROMPTS, contrastive, strict=True):
        wanted = plain_contrastive(model, prompt, CONTRASTIVE)
        assert (one.tokens, one.finish_reason) == (wanted.tokens, wanted.finish_reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_llama(folder, num_key_value_heads=2)
    return folder


# 3 ranks have one head or two each; at 4 two share a KV head.
@pytest.mark.parametrize("ranks", [2, 3, 4], ids="{}-ranks".format)
def test_searches_on_ranks_that_are_threads_are_those_of_the_uncut_model(ranks: int, folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    require_searches(run_as_threads(ranks, lambda mesh: searches(folder, mesh)), model)


@pytest.mark.parametrize("ranks", [1, 2, 4], ids="{}-ranks".format)
def test_searches_of_the_demo_checkpoint_are_those_of_the_uncut_model(ranks: int) -> None:
    require_searches(run_as_threads(ranks, lambda mesh: searches(DEMO, mesh)), as_hugging_face(str(DEMO)))


@pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)
def test_searches_on_ranks_that_are_processes_are_those_of_the_uncut_model(ranks: Pool, folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    runs = [ranks.run(searched_in_a_process, folder, PROMPTS, settings) for settings in (BEAMS, CONTRASTIVE)]
    require_searches(list(zip(*runs, strict=True)), model)


@torch.inference_mode()
def interrupted(folder: Path, mesh: Mesh, settings: Settings) -> list[Event]:
    """The events of a search that is interrupted after three steps: only rank 0 is told."""
    decoder = Decoder(load(folder, mesh), PROMPTS[:2], settings, [0, 1])
    logits_BV = decoder.prefill()
    told = lambda: mesh.rank == 0 and decoder.step >= 3  # noqa: E731
    if settings.search == "beams":
        return list(search_beams(decoder, logits_BV, None, [], told))
    return list(search_contrastive(decoder, logits_BV, None, told))


@pytest.mark.parametrize("settings", [BEAMS, CONTRASTIVE], ids=["beams", "contrastive"])
def test_an_interruption_of_rank_0_ends_the_search_on_every_rank(folder: Path, settings: Settings) -> None:
    one, other = run_as_threads(2, lambda mesh: interrupted(folder, mesh, settings))
    assert one == other
    assert max(sum(event.row == row and event.token is not None for event in one) for row in range(6)) == 3


@pytest.mark.parametrize("settings", [BEAMS, CONTRASTIVE], ids=["beams", "contrastive"])
def test_logits_that_are_not_finite_end_a_search_on_every_rank(folder: Path, settings: Settings) -> None:
    def spoilt(mesh: Mesh) -> str:
        decoder = Decoder(load(folder, mesh), PROMPTS[:2], settings, [0, 1])
        logits_BV = decoder.prefill()
        logits_BV[1, 5] = torch.nan
        search = (
            search_beams(decoder, logits_BV, None, [])
            if settings == BEAMS
            else search_contrastive(decoder, logits_BV, None)
        )
        with pytest.raises(RankFailedError) as caught:
            list(search)
        return str(caught.value)

    for text in run_as_threads(2, torch.inference_mode()(spoilt)):
        assert text.startswith("the logits of prompt 1 at step 0 are not finite (nan from rank 0)")
