"""Two trained models on any number of ranks: their slices to the bit, their logits, their recorded texts."""

from pathlib import Path

import pytest
import torch

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from tests.checkpoints import Sizes
from tests.distributed.answers import answer, require_answer
from tests.distributed.threads import run_as_threads
from tests.golden.conftest import MODELS, cases_of, reference_of
from tests.reference import merged_weights
from tests.unit.model.checkpoint.test_loading import check_matrix

SIZES = {
    "stories260K": Sizes(dim=64, n_layers=5, n_heads=8, n_kv_heads=4, multiple_of=4, vocabulary=512),
    "stories15M": Sizes(dim=288, n_layers=6, n_heads=6, n_kv_heads=6, multiple_of=32, vocabulary=32000),
}
# A shard each of 1 to 8, where there are heads enough.
SOURCES = (2, 3, 4, 6, 8)
NEW_TOKENS = 24


@pytest.mark.parametrize("name", SIZES)
def test_every_slice_of_every_cut_is_that_of_the_uncut_weights(name: str, tmp_path: Path) -> None:
    sizes, folders = SIZES[name], [MODELS / name]
    for mp in (mp for mp in SOURCES if mp <= sizes.n_heads):
        folders.append(tmp_path / f"ours-{mp}")
        write_meta_folder(open_checkpoint(MODELS / name), folders[-1], mp)
    check_matrix(folders, merged_weights(MODELS / name), sizes, 1, every=True)


@pytest.mark.parametrize("name", SIZES)
def test_logits_are_the_references_and_greedy_tokens_the_recorded_ones_on_any_number_of_ranks(name: str) -> None:
    checkpoint, cases = open_checkpoint(MODELS / name), cases_of(name)
    prompts = [case.prompt_tokens for case in cases]
    with torch.inference_mode():
        logits = reference_of(name).logits(prompts[0])
    wanted = logits, [case.tokens[:NEW_TOKENS] for case in cases]
    assert all(len(row) == NEW_TOKENS for row in wanted[1])
    for ranks in range(1, SIZES[name].n_heads + 1):
        require_answer(run_as_threads(ranks, lambda mesh: answer(checkpoint, mesh, prompts, NEW_TOKENS)), wanted)
