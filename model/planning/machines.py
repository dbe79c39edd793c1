"""Processors that `plan` knows the pace of: their makers' limits, and the part of them that decoding reaches. No torch.

Where a number was measured is said in `checked`; all others are assumed. docs/timing.md
"""

from dataclasses import dataclass

from model.planning.traffic import ETHERNET, INFINIBAND, NVLINK, SHARED_MEMORY, Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One processor and its memory. A share is what is reached of a limit, 0 to 1."""

    name: str
    memory_bytes_per_s: float
    memory_share: float
    # Of dense products: numbers of 16 bits, and float32.
    flops_16: float
    flops_32: float
    flops_share: float
    # What a pass takes besides reading, computing and collectives: launches, choosing the token, telling it.
    overhead_s: float
    # The ranks of a host share it; else each rank has one of its own.
    shared: bool
    # The most ranks of one host that the numbers hold for.
    host_ranks: int
    links: tuple[Link, ...]
    source: str
    checked: str

    def flops(self, itemsize: int) -> float:
        """The limit for numbers of so many bytes."""
        return self.flops_32 if itemsize == 4 else self.flops_16

    @property
    def described(self) -> str:
        """The constants."""
        return (
            f"{self.name}: {self.memory_share:.0%} of {self.memory_bytes_per_s / 1e9:g} GB/s of memory, "
            f"{self.flops_share:.0%} of {self.flops_16 / 1e12:g} TFLOPS (float32: {self.flops_32 / 1e12:g}), "
            f"{self.overhead_s * 1e3:g} ms a pass"
        )


def _gpu(name: str, memory_bytes_per_s: float, flops_16: float, flops_32: float) -> Machine:
    return Machine(
        name=name,
        memory_bytes_per_s=memory_bytes_per_s,
        memory_share=0.85,
        flops_16=flops_16,
        flops_32=flops_32,
        flops_share=0.5,
        overhead_s=0.2e-3,
        shared=False,
        # Most hosts have 8; NVLink switches join more.
        host_ranks=16,
        links=(NVLINK, INFINIBAND, ETHERNET),
        source="limits as NVIDIA's data sheet states them, dense; shares and the time a pass assumed",
        checked="not checked on a GPU: every figure is what the constants make of it",
    )


H200 = _gpu("H200", 4.8e12, 989e12, 67e12)
H100 = _gpu("H100 SXM", 3.35e12, 989e12, 67e12)
A100_80 = _gpu("A100 80 GB SXM", 2.039e12, 312e12, 19.5e12)
A100_40 = _gpu("A100 40 GB", 1.555e12, 312e12, 19.5e12)
GPUS = {"h200": H200, "h100": H100, "a100-80": A100_80, "a100-40": A100_40}

TWO_CORES = Machine(
    name="two cores with AVX-512",
    memory_bytes_per_s=50e9,
    memory_share=1.0,
    # Twice what torch's products of 512 rows reach on one thread.
    flops_16=0.95e12,
    flops_32=0.22e12,
    flops_share=0.7,
    overhead_s=0.9e-3,
    shared=True,
    host_ranks=2,
    links=(SHARED_MEMORY, ETHERNET),
    source="fitted to an AMD EPYC, two threads, shared by its ranks; its memory gave 46 to 69 GB/s over a day",
    checked="checked with 1.1 billion weights at MP 1 and 2 (docs/timing.md); not on other CPUs, nor between hosts",
)

# The least memory, in bytes, that a GPU is taken for each with. Those of 80 GB are of two kinds: the newer is taken.
_BY_MEMORY = ((90e9, H200), (45e9, H100), (0, A100_40))


def gpu_of(name: str, memory_bytes: int) -> Machine:
    """The GPU of this name in GPUS; for 'auto' the one with about as much memory."""
    if name != "auto":
        return GPUS[name]
    return next(machine for least, machine in _BY_MEMORY if memory_bytes >= least)
