"""The model of time against numbers worked out by hand, torch's count of operations, and what must hold of it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.params import Params
from model.planning.machines import A100_40, GPUS, H100, H200, TWO_CORES, Machine, gpu_of
from model.planning.plan import Plan, Workload, plan_of, shares_of
from model.planning.timing import Times, decode_times, prefill_times, read_bytes
from model.planning.traffic import ETHERNET, INFINIBAND, NVLINK, SHARED_MEMORY, Collective, Link, traffic_of
from model.split import split_of
from model.transformer import Transformer
from parallel import Mesh

SEVEN_B = Params(
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    ffn_dim=11008,
    vocab_size=32000,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
SMALL = replace(SEVEN_B, dim=48, n_layers=3, n_heads=12, n_kv_heads=4, ffn_dim=80, vocab_size=50)
# Every limit is reached, and nothing else takes time.
WHOLE_H200 = replace(H200, memory_share=1.0, flops_share=1.0, overhead_s=0.0)
# 6,738,415,616 weights less an embedding of 32,000 x 4,096, in two bytes each.
READ_BYTES = 2 * (6_738_415_616 - 32_000 * 4_096)


def planned(mp: int, params: Params = SEVEN_B, **changes: Any) -> tuple[Workload, Plan]:
    usual = Workload(
        params=params, embedding_dim=1, dtype="bfloat16", stored="bfloat16", device="cuda", batch=8, max_seq_len=512
    )
    work = replace(usual, **changes)
    return work, plan_of(work, shares_of(work, mp))


def decoding(mp: int, machine: Machine = WHOLE_H200, link: Link = NVLINK, batch: int = 1, **changes: Any) -> Times:
    return decode_times(*planned(mp, **changes), machine, link, batch)


def prefilling(mp: int, machine: Machine = WHOLE_H200, link: Link = NVLINK, **changes: Any) -> Times:
    return prefill_times(*planned(mp, **changes), machine, link)


def test_seven_billion_weights_on_an_h200_are_read_363_times_a_second() -> None:
    times = decoding(1)
    assert READ_BYTES == 13_214_687_232
    assert times.weights_s == pytest.approx(READ_BYTES / 4.8e12, rel=1e-12)
    assert 1 / times.weights_s == pytest.approx(363.2, abs=0.1)
    # 512 KiB a token.
    assert times.cache_s == pytest.approx(512 * 512 * 1024 / 4.8e12, rel=1e-12)
    assert times.seconds == times.weights_s + times.cache_s
    assert times.limit == "weights"


@pytest.mark.parametrize("embedding_dim", [0, 1])
@pytest.mark.parametrize("mp", [1, 2, 3, 8])
def test_the_ranks_read_every_weight_but_the_embedding(mp: int, embedding_dim: int) -> None:
    _, plan = planned(mp, SMALL, embedding_dim=embedding_dim)
    norms = 2 * (2 * SMALL.n_layers + 1) * SMALL.dim
    # Above 4 ranks each KV head stands on two, in keys and in values.
    copies = 2 * 2 * SMALL.n_layers * (sum(rank.share.widths.k for rank in plan.ranks) - 4) * 4 * SMALL.dim
    wanted = 2 * (SMALL.n_parameters - 50 * 48) + (mp - 1) * norms + copies
    assert sum(map(read_bytes, plan.ranks)) == wanted


def test_int8_takes_half_the_time_and_its_scales() -> None:
    plain, quantised = decoding(1), decoding(1, quantize="int8")
    # Four bytes for each row of each weight, and norms that stay as they were.
    scales = 4 * (32 * (5 * 4096 + 2 * 11008) + 32_000)
    norms = 65 * 4096
    assert quantised.weights_s == pytest.approx((READ_BYTES / 2 + norms + scales) / 4.8e12, rel=1e-12)
    assert quantised.weights_s == pytest.approx(plain.weights_s / 2, rel=1e-3)
    assert (quantised.cache_s, quantised.compute_s) == (plain.cache_s, plain.compute_s)


def test_operations_are_those_that_torch_counts() -> None:
    tokens, vocabulary = 64, 2 * 48 * 50
    # Only this way of attention is counted; it works out all places, of which causal attention needs half.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = Transformer(SMALL, Mesh())
        model.logits(model(torch.zeros(1, tokens, dtype=torch.long)))
    skipped = 3 * 4 * tokens * tokens * 48 // 2 + (tokens - 1) * vocabulary
    ours = prefilling(1, replace(WHOLE_H200, flops_16=1.0), params=SMALL, max_seq_len=tokens)
    assert ours.compute_s == counter.get_total_flops() - skipped


def test_a_prefill_computes_and_a_step_reads() -> None:
    assert prefilling(1).limit == "compute"
    # By hand: products with 6.607 billion weights for each token but those of the output, which are for one.
    layers = READ_BYTES / 2 - 32_000 * 4_096 - 65 * 4_096
    operations = 2 * (512 * layers + 32_000 * 4_096) + 32 * 4 * 512 * 256 * 4_096
    assert prefilling(1).compute_s == pytest.approx(operations / 989e12, rel=1e-12)
    assert prefilling(1, dtype="float32", stored="float32").compute_s == pytest.approx(operations / 67e12, rel=1e-12)


def test_what_takes_most_of_a_step_is_named() -> None:
    assert decoding(1, batch=64).limit == "KV cache"
    assert decoding(16, link=ETHERNET).limit == "collectives"
    assert decoding(1, replace(WHOLE_H200, overhead_s=1.0)).limit == "overhead"
    assert decoding(1, replace(WHOLE_H200, flops_16=1e9)).limit == "compute"


@pytest.mark.parametrize("machine", [*GPUS.values(), TWO_CORES])
def test_a_rank_alone_waits_for_nobody(machine: Machine) -> None:
    for link in machine.links:
        assert decoding(1, machine, link).collectives_s == prefilling(1, machine, link).collectives_s == 0.0


@pytest.mark.parametrize("limit", ["memory_bytes_per_s", "flops_16"])
@pytest.mark.parametrize("mp", [1, 2, 3, 16])
def test_a_faster_machine_is_never_slower(mp: int, limit: str) -> None:
    machines = [replace(H200, **{limit: 10.0**power}) for power in range(8, 16)]
    for times in (decoding, prefilling):
        found = [times(mp, machine).seconds for machine in machines]
        assert all(slow >= fast for slow, fast in pairwise(found))
        assert found[0] > found[-1]


@pytest.mark.parametrize("mp", [2, 3, 16])
def test_a_faster_link_is_never_slower(mp: int) -> None:
    for name in ("bytes_per_s", "step_s", "start_s"):
        values = sorted((1e-6, 1e-5, 1e-4), reverse=True) if name != "bytes_per_s" else (1e9, 1e10, 1e11)
        found = [prefilling(mp, link=replace(NVLINK, **{name: value})).seconds for value in values]
        assert all(slow > fast for slow, fast in pairwise(found))


def test_ranks_of_gpus_of_their_own_each_read_their_share() -> None:
    for mp in (2, 4, 8, 16):
        norms = 65 * 4096 * 2
        wanted = ((READ_BYTES - norms) / mp + norms) / 4.8e12
        assert decoding(mp).weights_s == pytest.approx(wanted, rel=1e-12)
        assert decoding(mp).collectives_s == planned(mp)[1].single.seconds(NVLINK)


def test_ranks_of_one_host_share_a_processor_and_those_of_several_do_not() -> None:
    alone = decoding(1, TWO_CORES).weights_s
    # Each has the norms for itself.
    assert decoding(2, TWO_CORES, SHARED_MEMORY).weights_s == pytest.approx(alone, rel=1e-3)
    assert decoding(2, TWO_CORES, ETHERNET).weights_s == pytest.approx(alone / 2, rel=1e-3)


def test_the_slowest_rank_of_an_uneven_cut_counts() -> None:
    work, plan = planned(3, SMALL)
    slowest = max(map(read_bytes, plan.ranks))
    assert min(map(read_bytes, plan.ranks)) < slowest
    assert decode_times(work, plan, WHOLE_H200, NVLINK, 1).weights_s == slowest / 4.8e12


def test_small_messages_are_read_from_all_at_once_and_large_ones_go_around_the_ring() -> None:
    small = Collective(kind="all-reduce", what="", count=3, payload_bytes=8_000)
    large = replace(small, payload_bytes=8_000_000)
    assert small.seconds(4, NVLINK) == pytest.approx(3 * (8e-6 + 1e-6 + 3 * 8_000 / 200e9), rel=1e-12)
    assert large.seconds(4, NVLINK) == pytest.approx(3 * (8e-6 + 6 * 1e-6 + 1.5 * 8_000_000 / 200e9), rel=1e-12)
    # A network has no other way.
    assert small.seconds(4, INFINIBAND) == pytest.approx(3 * (15e-6 + 6 * 5e-6 + 1.5 * 8_000 / 22e9), rel=1e-12)


def test_a_prefill_sends_hidden_states_of_every_token_and_logits_of_the_last() -> None:
    split = split_of(SMALL, 2)
    one, many = (traffic_of(SMALL, split, 1, 2, 4, tokens) for tokens in (1, 10))
    assert [each.count for each in many.collectives] == [each.count for each in one.collectives] == [1, 6, 1, 1]
    pairs = zip(one.collectives, many.collectives, strict=True)
    assert [large.payload_bytes / small.payload_bytes for small, large in pairs] == [10, 10, 1, 1]


def test_a_gpu_is_known_by_its_name_or_guessed_by_its_memory() -> None:
    assert gpu_of("a100-40", 141_000_000_000) is A100_40
    # GPUs of 141, 80 and 40 GB, as the first two report themselves.
    for nbytes, machine in ((150_754_820_096, H200), (85_520_809_984, H100), (80_000_000_000, H100)):
        assert gpu_of("auto", nbytes) is machine
    assert gpu_of("auto", 40_000_000_000) is gpu_of("auto", 1) is A100_40
