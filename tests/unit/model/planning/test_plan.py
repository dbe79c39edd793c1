"""`plan`'s numbers against published sizes, real tensors and brute force."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from model.cache import KVCache
from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.params_json import read_params
from model.generation.processors import process, processors_of
from model.generation.sampling import draw
from model.params import Params
from model.planning.host_memory import HostMemory, assumed_host_memory, host_memories
from model.planning.plan import Room, Workload, fits, largest_batch, longest_sequence, outlook, plan_of, shares_of
from model.planning.traffic import LOOPBACK, NVLINK, traffic_of
from model.planning.workspace import Widths, decode_bytes, prefill_bytes, resident_bytes, widths_of
from model.split import split_of
from model.transformer import Transformer
from parallel import Mesh, RefusedError
from tests.unit.model.conftest import MakeFolder
from tests.unit.model.test_params import MODELS, file_of

# Files and gigabytes of each, bfloat16 or float16, as published; KiB of cache a token.
PUBLISHED = {
    "Llama 1 7B": (1, 13.48, 512),
    "Llama 1 13B": (2, 13.02, 800),
    "Llama 1 30B": (4, 16.27, 1560),
    "Llama 1 65B": (8, 16.32, 2560),
    "Llama 2 7B": (1, 13.48, 512),
    "Llama 2 13B": (2, 13.02, 800),
    "Llama 2 70B": (8, 17.25, 320),
    "Code Llama 34B": (4, 16.87, 192),
    "Llama 3 8B": (1, 16.06, 128),
    "Llama 3 70B": (8, 17.64, 320),
    "Llama 3.1 405B MP8": (8, 101.47, 504),
    "Llama 3.1 405B MP16": (16, 51.27, 1008),
    "Llama 3.2 1B": (1, 3.00, 32),
    "Llama 3.2 3B": (1, 7.21, 112),
}
SMALL = Params(
    dim=48,
    n_layers=3,
    n_heads=12,
    n_kv_heads=4,
    ffn_dim=80,
    vocab_size=50,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
WHOLE_GPU = Room(bytes=80_000_000_000, gpus=None, source="")


def work_of(params: Params, **changes: Any) -> Workload:
    usual = Workload(
        params=params, embedding_dim=1, dtype="bfloat16", stored="bfloat16", device="cuda", batch=1, max_seq_len=100
    )
    return replace(usual, **changes)


def published(name: str, folder: Path) -> Params:
    raw = next(row[1] for row in MODELS if row[0] == name)
    return read_params(file_of(folder, raw))


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_and_cache_are_those_of_the_published_files(name: str, tmp_path: Path) -> None:
    files, gigabytes, kib = PUBLISHED[name]
    params = published(name, tmp_path)
    for rank in plan_of(work_of(params), shares_of(work_of(params), files)).ranks:
        # The table gives two decimals, and counts no norms twice.
        assert rank.share.weights_bytes / 1e9 == pytest.approx(gigabytes, abs=0.011)
    (alone,) = plan_of(work_of(params), shares_of(work_of(params), 1)).ranks
    # 100 tokens, and the place that a full row still writes to.
    assert alone.cache_bytes == 101 * kib * 1024


@pytest.mark.parametrize("embedding_dim", [0, 1])
@pytest.mark.parametrize("mp", range(1, 13))
def test_each_rank_is_planned_what_the_real_model_and_cache_hold(mp: int, embedding_dim: int) -> None:
    work = work_of(SMALL, embedding_dim=embedding_dim, dtype="float32", batch=3)
    for rank, planned in enumerate(plan_of(work, shares_of(work, mp)).ranks):
        mesh = Mesh(rank, mp)
        with torch.device("meta"):
            model = Transformer(SMALL, mesh, 0 if embedding_dim == 0 else 1)
        assert planned.share.weights_bytes == sum(weight.nbytes for weight in model.parameters())
        cache = KVCache(SMALL, mesh, 3, work.cache_tokens, torch.float32, torch.device("cpu"))
        assert planned.cache_bytes == sum(tensor.nbytes for tensor in (*cache.keys_LBkSH, *cache.values_LBkSH))


@pytest.mark.parametrize("mp", [1, 2, 3, 4])
def test_the_shares_of_all_ranks_are_the_whole_model(mp: int) -> None:
    norms_bytes = 2 * (2 * SMALL.n_layers + 1) * SMALL.dim
    shares = shares_of(work_of(SMALL), mp)
    assert sum(share.weights_bytes - norms_bytes for share in shares) + norms_bytes == 2 * SMALL.n_parameters


def test_the_fullest_rank_of_an_uneven_cut_is_named() -> None:
    # 4 KV heads on 3 ranks: 2, 1, 1.
    plan = plan_of(work_of(SMALL, batch=64), shares_of(work_of(SMALL, batch=64), 3))
    assert [rank.share.widths.k for rank in plan.ranks] == [2, 1, 1]
    assert plan.fullest == 0
    assert plan.ranks[0].device_bytes == max(rank.device_bytes for rank in plan.ranks)


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(RefusedError, match="cannot cut 12 heads over 13 ranks; choose an MP of 12 or fewer"):
        shares_of(work_of(SMALL), 13)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("mp", [1, 2, 3])
def test_one_row_or_token_more_than_the_largest_does_not_fit(mp: int, device: str) -> None:
    work = work_of(SMALL, device=device, batch=4)
    room = replace(WHOLE_GPU, bytes=1_500_000_000)
    shares = shares_of(work, mp)
    batch, tokens = largest_batch(work, shares, room), longest_sequence(work, shares, room)
    assert 0 < batch < 2**16
    assert 0 < tokens < 2**20
    for changed in (replace(work, batch=batch), replace(work, max_seq_len=tokens)):
        assert fits(changed, shares, room)
    for changed in (replace(work, batch=batch + 1), replace(work, max_seq_len=tokens + 1)):
        assert not fits(changed, shares, room)


def test_what_is_needed_grows_with_batch_and_tokens() -> None:
    """The searches rest on it."""
    for device in ("cpu", "cuda"):
        work = work_of(SMALL, device=device)
        shares = shares_of(work, 2)
        by_batch = [plan_of(replace(work, batch=2**n), shares).ranks[0].device_bytes for n in range(17)]
        by_tokens = [plan_of(replace(work, max_seq_len=2**n), shares).ranks[0].device_bytes for n in range(21)]
        assert by_batch == sorted(by_batch)
        assert by_tokens == sorted(by_tokens)


def test_nothing_fits_where_there_are_fewer_gpus_than_ranks_or_no_room_for_weights() -> None:
    two = replace(WHOLE_GPU, gpus=2)
    assert outlook(work_of(SMALL), 2, two).fits
    seen = outlook(work_of(SMALL), 3, two)
    assert (seen.fits, seen.largest_batch, seen.longest_sequence) == (False, 0, 0)
    assert not outlook(work_of(SMALL), 1, replace(WHOLE_GPU, bytes=1_000_000_000)).fits


def test_on_a_cpu_all_ranks_share_the_memory_of_the_host() -> None:
    work = work_of(SMALL, device="cpu")
    needed = sum(rank.device_bytes for rank in plan_of(work, shares_of(work, 4)).ranks)
    assert fits(work, shares_of(work, 4), replace(WHOLE_GPU, bytes=needed))
    assert not fits(work, shares_of(work, 4), replace(WHOLE_GPU, bytes=needed - 1))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def peak_bytes(act: Callable[[], object], folder: Path) -> int:
    """The most bytes that torch's CPU allocator had lent at once while `act` ran, of those lent in it."""
    act()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    lent = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(nbytes for _, nbytes in lent))


def widths(params: Params, itemsize: int) -> Widths:
    return widths_of(params, split_of(params, 1), 1, itemsize)[0]


# The widest moment is in turn the feed-forward, the rotation of many heads, and a norm.
@pytest.mark.parametrize(("ffn", "kv_heads", "n_heads"), [(1408, 2, 8), (128, 8, 8), (16, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("one_thread")
def test_a_prefill_takes_the_temporaries_that_are_planned(
    ffn: int, kv_heads: int, n_heads: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    params = replace(SMALL, dim=512, n_layers=2, n_heads=n_heads, n_kv_heads=kv_heads, ffn_dim=ffn, vocab_size=100)
    model = Transformer(params, Mesh()).to(dtype).requires_grad_(False)
    tokens = torch.zeros(4, 256, dtype=torch.long)

    @torch.inference_mode()
    def prefill() -> None:
        cache = KVCache(params, Mesh(), 4, 256, dtype, torch.device("cpu"))
        hidden = model(tokens, cache)
        model.logits(hidden[:, -1])

    held = 2 * params.n_layers * kv_heads * params.head_dim * dtype.itemsize * 4 * 256
    planned = prefill_bytes(widths(params, dtype.itemsize), 4, 256, 256)
    # Attention's tiles and the products' scratch are left out: about half a megabyte for each thread.
    assert 0.97 * planned < peak_bytes(prefill, tmp_path) - held < 1.03 * planned + 6e5


def test_drawing_tokens_takes_what_is_planned(tmp_path: Path) -> None:
    logits = torch.randn(4, 32000, generator=torch.Generator().manual_seed(1))
    # The logits themselves are there before.
    processors = processors_of(temperature=0.6, top_k=0, top_p=0.9, min_p=0.0, repetition_penalty=1.0, sampling=True)
    found = peak_bytes(lambda: draw(process(processors, [], logits), [0.5] * 4), tmp_path) + logits.nbytes
    params = replace(SMALL, vocab_size=32000)
    # numpy sorts the rows; torch's allocator does not see its copy, which is gone at the widest moment.
    assert decode_bytes(widths(params, 4), 4, 1) == pytest.approx(found, rel=0.01)


def test_on_a_cpu_the_heap_holds_more_than_what_is_alive_and_never_less_for_more_rows() -> None:
    wide = widths(replace(SMALL, dim=1024, ffn_dim=4096), 4)
    held = [resident_bytes(prefill_bytes(wide, 1, 2**n, 2**n), wide, 2**n) for n in range(21)]
    alive = [prefill_bytes(wide, 1, 2**n, 2**n) for n in range(21)]
    assert held == sorted(held)
    assert all(more > less for more, less in zip(held, alive, strict=True))


# Files, ranks, dtype of the run; the files are float32.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("mp", "ranks"), [(1, 1), (2, 2), (2, 1), (1, 2), (1, 3), (2, 4), (2, 3)])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_weights_are_copied_or_stay_mapped_as_the_loader_does(
    make_folder: MakeFolder, mp: int, ranks: int, dtype: str, embedding_dim: int
) -> None:
    checkpoint = open_checkpoint(make_folder("ckpt", mp=mp, embedding_dim=embedding_dim))
    planned = host_memories(checkpoint, checkpoint.split(ranks), dtype, "cpu")
    for rank, host in enumerate(planned):
        weights = load_weights(checkpoint, rank, ranks, getattr(torch, dtype), torch.device("cpu")).values()
        # A view of a mapped file cannot be resized.
        own = [weight for weight in weights if weight.untyped_storage().resizable()]
        assert host.copied_bytes == sum(weight.nbytes for weight in own)
        staying_bytes = sum(weight.nbytes for weight in weights) - host.copied_bytes
        assert (host.kept_bytes >= staying_bytes) if staying_bytes else host.kept_bytes == 0
        if mp == ranks:
            file_bytes = sum(weight.nbytes for weight in weights) * 4 // getattr(torch, dtype).itemsize
            assert host.mapped_bytes == file_bytes
            assert (host.passing_bytes == 0) == (dtype == "float32")


def test_what_is_assumed_of_files_that_are_not_there() -> None:
    assert assumed_host_memory(100, "bfloat16", "bfloat16", "cpu") == HostMemory(
        copied_bytes=0, kept_bytes=100, passing_bytes=0, staging_bytes=0
    )
    assert assumed_host_memory(200, "bfloat16", "float32", "cpu") == HostMemory(
        copied_bytes=200, kept_bytes=0, passing_bytes=100, staging_bytes=0
    )
    assert assumed_host_memory(100, "bfloat16", "bfloat16", "cuda") == HostMemory(
        copied_bytes=0, kept_bytes=0, passing_bytes=100, staging_bytes=2 * 64 * 2**20
    )


def test_a_converted_checkpoint_is_private_on_a_cpu_and_lets_go_of_its_files(make_folder: MakeFolder) -> None:
    checkpoint = open_checkpoint(make_folder("ckpt"))
    stored = work_of(checkpoint.params, dtype="float32", stored="float32", device="cpu", checkpoint=checkpoint)
    (kept,) = plan_of(stored, shares_of(stored, 1)).ranks
    converted = replace(stored, dtype="bfloat16")
    (copied,) = plan_of(converted, shares_of(converted, 1)).ranks
    assert kept.share.host.copied_bytes == 0
    assert copied.share.host.copied_bytes == copied.share.weights_bytes
    assert (kept.share.host.kept_bytes, kept.share.host.passing_bytes) == (kept.share.weights_bytes, 0)
    assert (copied.share.host.kept_bytes, copied.share.host.passing_bytes) == (0, kept.share.weights_bytes)


def test_a_rank_alone_sends_nothing() -> None:
    traffic = traffic_of(SMALL, split_of(SMALL, 1), 1, 1, 2)
    assert (traffic.count, traffic.sent_bytes, traffic.seconds(NVLINK)) == (0, 0, 0)


def test_time_is_that_of_the_stated_model() -> None:
    # Two ranks, float32, one row: an all-gather, 6 all-reduces of 192 bytes, an all-gather of 200, a broadcast of 16.
    traffic = traffic_of(SMALL, split_of(SMALL, 2), 1, 1, 4)
    assert [each.count for each in traffic.collectives] == [1, 6, 1, 1]
    assert traffic.payload_bytes == 192 + 6 * 192 + 4 * 50 + 16
    # On two ranks each sends half of what it gathers, and all of what it reduces.
    assert traffic.sent_bytes == 96 + 6 * 192 + 100 + 16
    steps = 1 + 6 * 2 + 1 + 1
    wanted = 9 * LOOPBACK.start_s + steps * LOOPBACK.step_s + traffic.sent_bytes / LOOPBACK.bytes_per_s
    assert traffic.seconds(LOOPBACK) == pytest.approx(wanted)
