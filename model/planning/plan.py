"""What a run will take of each rank before anything is loaded, from sizes and headers alone. No torch.

Weights are the exact bytes of a rank's slices, and the cache is that of `cache.py` for as many tokens as
`generation/decoder.py` makes room for. Temporaries follow the model in `workspace.py`. The worst case is planned: a
batch of prompts that all fill `max_seq_len`, then decoding with random sampling.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.files import DTYPE_BYTES
from model.params import Params
from model.planning.host_memory import HostMemory, assumed_host_memory, host_memories
from model.planning.traffic import NVLINK, SHARED_MEMORY, Link, Traffic, traffic_of
from model.planning.weight_bytes import weights_of
from model.planning.workspace import Widths, decode_bytes, prefill_bytes, resident_bytes, widths_of
from model.split import Split, split_of
from parallel.kernels.formats import Quantisation

# What a process takes on a GPU besides tensors: CUDA's context, NCCL's and cuBLAS's buffers. Assumed, not measured.
GPU_RESERVE_BYTES = 1_000_000_000
# On a CPU: code of torch's library that the first pass brings in, and its buffers. Measured, torch 2.13.
CPU_CODE_BYTES = 18_000_000
CPU_BUFFER_BYTES = 11_000_000
# parallel/kernels/native.py: up to so many rows are multiplied with quantised weights as they stand.
_FEW_ROWS = 8
MAX_BATCH = 2**16
MAX_SEQ_LEN = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be run. `stored`: the files' dtype; `checkpoint`: None where only sizes are known."""

    params: Params
    embedding_dim: int
    dtype: str
    stored: str
    device: str
    batch: int
    max_seq_len: int
    checkpoint: Checkpoint | None = None
    quantize: Quantisation = "none"

    @property
    def itemsize(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def cache_tokens(self) -> int:
        """Places of a row: one more than its tokens (generation/decoder.py, Decoder.cache_tokens)."""
        return self.max_seq_len + 1

    @property
    def link(self) -> Link:
        return SHARED_MEMORY if self.on_cpu else NVLINK


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a rank has whatever the batch: its widths, and its weights in bytes.

    Quantised weights are written out as plain ones, one at a time, when many rows are multiplied with them:
    `written_out_bytes` of the largest of a layer, `written_output_bytes` of `output`.
    """

    widths: Widths
    weights_bytes: int
    host: HostMemory
    written_out_bytes: int = 0
    written_output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's memory, in bytes. `reserve_bytes`: on a GPU CUDA's own, on a CPU the libraries'."""

    share: Share
    cache_bytes: int
    prefill_bytes: int
    decode_bytes: int
    reserve_bytes: int
    on_cpu: bool

    @property
    def workspace_bytes(self) -> int:
        """Temporaries at their worst moment."""
        return max(self.prefill_bytes, self.decode_bytes)

    @property
    def device_bytes(self) -> int:
        """What has to fit: on a GPU, or of the host's memory. Of mapped files only weights in use are counted."""
        weights = max(self.share.weights_bytes, self.share.host.copied_bytes if self.on_cpu else 0)
        return weights + self.cache_bytes + self.workspace_bytes + self.reserve_bytes

    @property
    def host_private_bytes(self) -> int:
        """Peak of this process's own memory on the host, beyond what its libraries take (RssAnon)."""
        host = self.share.host
        return host.copied_bytes + host.staging_bytes + self._run_bytes

    @property
    def host_peak_bytes(self) -> int:
        """Peak of private memory and mapped files together (VmRSS): at the end of loading, or while it runs."""
        host = self.share.host
        loading = host.copied_bytes + host.staging_bytes + host.mapped_bytes
        running = host.copied_bytes + host.kept_bytes + self._run_bytes + (CPU_CODE_BYTES if self.on_cpu else 0)
        return max(loading, running)

    @property
    def _run_bytes(self) -> int:
        """Private memory of the host that running takes besides weights."""
        return self.cache_bytes + self.workspace_bytes + CPU_BUFFER_BYTES if self.on_cpu else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All ranks of one MP size. `traffic` is that of a step of the batch, `single` that of one row."""

    split: Split
    ranks: tuple[RankPlan, ...]
    traffic: Traffic
    single: Traffic

    @property
    def mp(self) -> int:
        return self.split.mp

    @property
    def fullest(self) -> int:
        """The rank that takes most, the first of them."""
        return max(range(self.mp), key=lambda rank: (self.ranks[rank].device_bytes, -rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory to fit into: on each GPU, or of a host for all its ranks. `gpus`: how many, None for enough."""

    bytes: int
    gpus: int | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A plan beside the memory there is."""

    plan: Plan
    fits: bool
    # Rows of max_seq_len tokens.
    largest_batch: int
    # Tokens a row, with the batch that was asked for.
    longest_sequence: int


def shares_of(work: Workload, mp: int) -> tuple[Share, ...]:
    """Each rank's share. RefusedError where the model cannot be cut for `mp` ranks."""
    split = split_of(work.params, mp)
    weights = weights_of(work.params, work.embedding_dim, split, work.itemsize, work.quantize)
    hosts = (
        tuple(
            assumed_host_memory(own.used, work.stored, work.dtype, work.device, own.quantised, own.saved)
            for own in weights
        )
        if work.checkpoint is None
        else host_memories(work.checkpoint, split, work.dtype, work.device, work.quantize)
    )
    widths = widths_of(work.params, split, work.embedding_dim, work.itemsize)
    return tuple(
        Share(
            widths=wide,
            weights_bytes=own.used,
            host=host,
            written_out_bytes=own.written_out,
            written_output_bytes=own.written_output,
        )
        for wide, own, host in zip(widths, weights, hosts, strict=True)
    )


def plan_of(work: Workload, shares: Sequence[Share]) -> Plan:
    """The plan for ranks of these shares."""
    split = split_of(work.params, len(shares))

    def traffic(batch: int) -> Traffic:
        return traffic_of(work.params, split, work.embedding_dim, batch, work.itemsize)

    ranks = tuple(_rank_plan(work, share) for share in shares)
    return Plan(split=split, ranks=ranks, traffic=traffic(work.batch), single=traffic(1))


def outlook(work: Workload, mp: int, room: Room) -> Outlook:
    """The plan for `mp` ranks, and what of it fits. RefusedError where the model cannot be cut for so many."""
    shares = shares_of(work, mp)
    return Outlook(
        plan=plan_of(work, shares),
        fits=fits(work, shares, room),
        largest_batch=largest_batch(work, shares, room),
        longest_sequence=longest_sequence(work, shares, room),
    )


def fits(work: Workload, shares: Sequence[Share], room: Room) -> bool:
    """Whether every rank has its memory."""
    counted = Counter(shares)
    if work.on_cpu:
        needed = sum(count * _rank_plan(work, share).device_bytes for share, count in counted.items())
        return needed <= room.bytes
    enough = room.gpus is None or counted.total() <= room.gpus
    return enough and all(_rank_plan(work, share).device_bytes <= room.bytes for share in counted)


def largest_batch(work: Workload, shares: Sequence[Share], room: Room) -> int:
    """The most rows of `max_seq_len` tokens that fit, up to MAX_BATCH; 0 where none does."""
    return _largest(lambda batch: fits(replace(work, batch=batch), shares, room), MAX_BATCH)


def longest_sequence(work: Workload, shares: Sequence[Share], room: Room) -> int:
    """The most tokens a row that fit with `batch` rows, up to MAX_SEQ_LEN; 0 where not even one does."""
    return _largest(lambda tokens: fits(replace(work, max_seq_len=tokens), shares, room), MAX_SEQ_LEN)


def _largest(good: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that is good, where all below a good one are good too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low


def _rank_plan(work: Workload, share: Share) -> RankPlan:
    widths, batch = share.widths, work.batch
    prefill = prefill_bytes(widths, batch, work.max_seq_len, work.cache_tokens)
    decode = decode_bytes(widths, batch, work.cache_tokens)
    if work.on_cpu:
        prefill = resident_bytes(prefill, widths, batch * work.max_seq_len)
        decode = resident_bytes(decode, widths, batch)
    if batch > _FEW_ROWS:
        decode += max(share.written_out_bytes, share.written_output_bytes)
    row = 2 * work.params.n_layers * widths.k * widths.head_dim * work.itemsize
    return RankPlan(
        share=share,
        cache_bytes=batch * work.cache_tokens * row,
        # It ends with the logits of each row's last token, as a step of decoding does.
        prefill_bytes=max(prefill + share.written_out_bytes, decode) if share.written_out_bytes else prefill,
        decode_bytes=decode,
        reserve_bytes=CPU_CODE_BYTES + CPU_BUFFER_BYTES if work.on_cpu else GPU_RESERVE_BYTES,
        on_cpu=work.on_cpu,
    )
