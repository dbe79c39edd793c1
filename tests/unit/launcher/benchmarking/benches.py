"""Results as if they had been measured."""

from launcher.benchmarking.results import Bench, Machine, Memory, Result, Size


def result(mp: int, batch_size: int) -> Result:
    return Result(
        mp=mp,
        batch_size=batch_size,
        prompt_tokens=128,
        new_tokens=64,
        first_token_s=0.25,
        prefill_tokens_per_s=512.0 * batch_size,
        prefill_share_of_peak_flops=0.5,
        decode_step_s=0.0625,
        decode_tokens_per_s=16.0 * batch_size,
        decode_tokens_per_s_lowest=15.5 * batch_size,
        decode_tokens_per_s_highest=16.5 * batch_size,
        decode_s=3.9375,
        step_bytes=10**9,
        decode_share_of_bandwidth=0.125,
    )


def size(mp: int, left_out: list[int]) -> Size:
    return Size(
        mp=mp,
        backend="gloo" if mp > 1 else None,
        threads=2 // mp,
        load_s=0.5 * mp,
        load_bytes=10**9,
        load_gb_per_s=2.0 / mp,
        first_token_after_loading_s=1.5,
        peak_flops_per_s=1e12,
        bandwidth_bytes_per_s=64e9,
        memory=[Memory(rank=rank, peak_bytes=2 * 10**9, planned_bytes=10**9) for rank in range(mp)],
        left_out=left_out,
    )


def bench(mp: int, batches: tuple[int, ...] = (1, 8), left_out: tuple[int, ...] = ()) -> Bench:
    return Bench(
        source="ckpt",
        random_weights=False,
        notes=[],
        n_parameters=7_000_000_000,
        dtype="bfloat16",
        quantize="none",
        date="2026-11-20T12:00:00Z",
        machine=Machine(processor="AMD EPYC", cores=2, device="cpu", torch="2.13.0"),
        sizes=[size(mp, list(left_out))],
        results=[result(mp, batch) for batch in batches],
    )
