"""What the ranks send each other for a pass of the model, and about how long that takes. Arithmetic only; no torch.

Counts follow `transformer.py`, `parallel/embedding.py` and `generation/decoder.py`. The time is that of a stated,
simple model: starting a collective, some steps around a ring of ranks, and its bytes over one link; or one step in
which every rank reads from all others, where the link can do that and it is faster. It leaves out the waiting for
slower ranks.
"""

from dataclasses import dataclass
from typing import Literal

from model.params import Params
from model.split import Split

Kind = Literal["all-reduce", "all-gather", "broadcast"]
# The id of a token, and whether its row ends there, int64.
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What carries collectives: seconds to start one, seconds a step of the ring, bytes a second each way.

    `one_shot`: a rank can read what all others hold in a single step. `one_host`: it ends at the host.
    """

    name: str
    start_s: float
    step_s: float
    bytes_per_s: float
    source: str
    one_shot: bool = False
    one_host: bool = True

    @property
    def described(self) -> str:
        """The constants."""
        ways = "a step of a ring, or to read from all at once" if self.one_shot else "a step of a ring"
        return (
            f"{self.name}: {self.start_s * 1e6:g} us a collective, {self.step_s * 1e6:g} us {ways}, "
            f"{self.bytes_per_s / 1e9:g} GB/s"
        )


# Within a host; docs/timing.md has the reasons of all of them.
NVLINK = Link(
    name="NCCL over NVLink",
    start_s=8e-6,
    step_s=1e-6,
    bytes_per_s=200e9,
    source="assumed, not measured; PCIe has about a tenth of the bandwidth",
    one_shot=True,
)
LOOPBACK = Link(
    name="gloo on loopback",
    start_s=300e-6,
    step_s=300e-6,
    bytes_per_s=1.5e9,
    source="measured while two ranks decoded on two cores; several times slower where ranks share cores",
)
SHARED_MEMORY = Link(
    name="shared memory",
    start_s=2e-6,
    step_s=1e-6,
    bytes_per_s=16e9,
    source="fitted to two ranks on two cores, 4 KiB to 4 MiB; four times slower where ranks share cores",
    one_shot=True,
)
# Between hosts.
INFINIBAND = Link(
    name="InfiniBand, 200 Gb/s",
    start_s=15e-6,
    step_s=5e-6,
    bytes_per_s=22e9,
    source="assumed: nine tenths of the line, NCCL with GPUDirect",
    one_host=False,
)
ETHERNET = Link(
    name="Ethernet, 25 Gb/s",
    start_s=30e-6,
    step_s=30e-6,
    bytes_per_s=2.8e9,
    source="assumed: nine tenths of the line, TCP",
    one_host=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """`count` collectives of a kind. `payload_bytes`: what every rank holds after one of them."""

    kind: Kind
    what: str
    count: int
    payload_bytes: int

    def steps(self, ranks: int) -> int:
        """Steps of one of them around a ring."""
        return 2 * (ranks - 1) if self.kind == "all-reduce" else ranks - 1

    def sent_bytes(self, ranks: int) -> float:
        """What each rank sends for one of them around a ring."""
        if self.kind == "broadcast":
            return self.payload_bytes
        once = self.payload_bytes * (ranks - 1) / ranks
        return 2 * once if self.kind == "all-reduce" else once

    def read_bytes(self, ranks: int) -> float:
        """What each rank reads for one of them where it reads from all others at once."""
        return self.payload_bytes * (ranks - 1) if self.kind == "all-reduce" else self.sent_bytes(ranks)

    def seconds(self, ranks: int, link: Link) -> float:
        """All `count` of them, one after the other."""
        each_s = self.steps(ranks) * link.step_s + self.sent_bytes(ranks) / link.bytes_per_s
        if link.one_shot:
            each_s = min(each_s, link.step_s + self.read_bytes(ranks) / link.bytes_per_s)
        return self.count * (link.start_s + each_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The collectives of one pass over `batch` rows."""

    ranks: int
    batch: int
    collectives: tuple[Collective, ...]

    @property
    def count(self) -> int:
        return sum(each.count for each in self.collectives)

    @property
    def payload_bytes(self) -> int:
        return sum(each.count * each.payload_bytes for each in self.collectives)

    @property
    def sent_bytes(self) -> int:
        """What each rank sends around rings."""
        return round(sum(each.count * each.sent_bytes(self.ranks) for each in self.collectives))

    def seconds(self, link: Link) -> float:
        return sum(each.seconds(self.ranks, link) for each in self.collectives)


def traffic_of(params: Params, split: Split, embedding_dim: int, batch: int, itemsize: int, tokens: int = 1) -> Traffic:
    """The collectives of a pass over `tokens` new tokens in each row (1: a decoding step) and of the choice behind it;
    none where a rank is alone."""
    if split.mp == 1:
        return Traffic(ranks=1, batch=batch, collectives=())
    rows = batch * tokens
    hidden_bytes = rows * params.dim * itemsize
    # Narrower shares are filled up to the widest before they are gathered.
    columns = split.mp * max(own.size for own in split.width)
    logits = split.mp * max(own.size for own in split.vocabulary)
    embedding = (
        Collective(kind="all-reduce", what="embedding", count=1, payload_bytes=hidden_bytes)
        if embedding_dim == 0
        else Collective(kind="all-gather", what="embedding", count=1, payload_bytes=rows * columns * itemsize)
    )
    return Traffic(
        ranks=split.mp,
        batch=batch,
        collectives=(
            embedding,
            Collective(kind="all-reduce", what="layers", count=2 * params.n_layers, payload_bytes=hidden_bytes),
            Collective(kind="all-gather", what="logits", count=1, payload_bytes=batch * logits * itemsize),
            Collective(kind="broadcast", what="tokens", count=1, payload_bytes=batch * _TOKEN_BYTES),
        ),
    )
