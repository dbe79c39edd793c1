"""Quantised weights over ranks: the whole numbers of each are slices of those of one rank, and so are the tokens."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.building import build_model
from model.checkpoint.opening import open_checkpoint
from model.generation.generate import Generation
from model.generation.settings import Settings
from model.looking import look
from model.tokenizers.opening import open_tokenizer
from parallel import Mesh, World
from parallel.kernels.formats import Quantisation
from parallel.kernels.quantised import Int8Weight, QuantisedWeight
from tests.distributed.pool import Pool
from tests.distributed.same_at_any_mp import wordy_prompts
from tests.distributed.threads import run_as_threads
from tests.minis import MINIS, Mini, own_part
from tests.quantised import load_quantised

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT.parent / "shared" / "models"
# Heads of 64 numbers and 768 feed-forward columns: on 2, 3 and 4 ranks all cuts fall between groups of 64.
WHOLE_GROUPS = Mini(dim=256, n_heads=4, n_kv_heads=4, multiple_of=256, vocabulary=120)


def weights_of(folder: Path, mesh: Mesh, quantize: Quantisation) -> dict[str, Tensor]:
    """By Meta's names, a rank's quantised weights as what they stand for (int4), or their whole numbers and scales."""
    found = {}
    for name, module in load_quantised(open_checkpoint(folder), mesh, quantize).named_modules():
        if isinstance(module, QuantisedWeight):
            found[name] = module.numbers if isinstance(module, Int8Weight) else module.dequantised(torch.float32)
    return {name: weight.detach() for name, weight in found.items()}


def require_slices(sizes: Mini, folder: Path, mp: int, quantize: Quantisation) -> None:
    whole = weights_of(folder, Mesh(), quantize)
    assert len(whole) == 7 * sizes.n_layers + 1
    for rank, found in enumerate(run_as_threads(mp, lambda mesh: weights_of(folder, mesh, quantize))):
        wanted = own_part(whole, sizes, sizes.embedding_dim, rank, mp)
        for name, weight in found.items():
            assert torch.equal(weight, wanted[name]), f"{name} on rank {rank} of {mp}"


@pytest.mark.parametrize("mp", [2, 3, 5, 12])
@pytest.mark.parametrize("name", ["12 heads", "12 heads, 4 KV heads"])
def test_whole_numbers_of_int8_are_slices_of_those_of_one_rank_at_every_mp(name: str, mp: int, tmp_path: Path) -> None:
    sizes = MINIS[name]
    require_slices(sizes, sizes.write(tmp_path / "ckpt", 1), mp, "int8")


@pytest.mark.parametrize("mp", [2, 3, 4])
def test_numbers_of_int4_are_slices_of_those_of_one_rank_where_cuts_fall_between_groups(
    mp: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require_slices(WHOLE_GROUPS, WHOLE_GROUPS.write(tmp_path / "ckpt", 1), mp, "int4")
    assert not [record for record in caplog.records if record.message.startswith("note: int4")]


def test_where_cuts_fall_within_groups_of_int4_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = MINIS["12 heads"].write(tmp_path / "ckpt", 1)
    run_as_threads(2, lambda mesh: load_quantised(open_checkpoint(folder), mesh, "int4"))
    (said,) = [record.message for record in caplog.records if record.message.startswith("note: int4")]
    assert said.startswith("note: int4: ranks hold parts of wo that do not begin at a multiple of 64 columns, so their")


@cache
def tokens_at(folder: Path, mp: int) -> list[list[int]]:
    """Greedy, in float32, of several prompts in a batch; the same on every rank."""
    checkpoint, tokenizer = open_checkpoint(folder), open_tokenizer(folder / "tokenizer.model")
    prompts = [*wordy_prompts(tokenizer, 2, 9), tokenizer.encode("Once upon a time", bos=True, eos=False)]

    def generate(mesh: Mesh) -> list[list[int]]:
        settings = Settings(max_gen_len=40, max_seq_len=64, temperature=0)
        generation = Generation(load_quantised(checkpoint, mesh, "int8"), prompts, settings, range(len(prompts)))
        found: list[list[int]] = [[] for _ in prompts]
        with torch.inference_mode():
            for event in generation.events():
                if event.token is not None:
                    found[event.row].append(event.token)
        return found

    first, *others = run_as_threads(mp, generate)
    assert all(other == first for other in others)
    assert [len(tokens) for tokens in first] == [40] * len(prompts)
    return first


@pytest.mark.parametrize("mp", [2, 3])
@pytest.mark.parametrize("model", ["demo", "stories260K", "stories15M"])
def test_trained_models_in_int8_choose_the_same_tokens_at_mp_1_2_and_3(model: str, mp: int) -> None:
    folder = ROOT / "configs" / "demo" if model == "demo" else MODELS / model
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; it lies beside the repository, not in it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert tokens_at(folder, mp) == tokens_at(folder, 1)
    finally:
        torch.set_num_threads(threads)


def built(world: World, folder: Path, quantize: str) -> dict[str, Tensor]:
    """By the way of the command."""
    model = build_model(look(str(folder), None, world.mesh.size), world, "float32", quantize=quantize)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
def test_ranks_that_are_processes_agree_on_the_scales_of_rows_that_they_share(ranks: Pool) -> None:
    folder = ROOT / "configs" / "demo"
    whole = load_quantised(open_checkpoint(folder), Mesh(), "int8").state_dict()
    first, second = ranks.run(built, folder, "int8")
    name = "layers.0.feed_forward.w2.weight"
    assert torch.equal(first[f"{name}.scales"], second[f"{name}.scales"])
    assert torch.equal(torch.cat([first[f"{name}.numbers"], second[f"{name}.numbers"]], 1), whole[f"{name}.numbers"])
