"""What the ranks send each other for one step of decoding, and about how long that takes. Arithmetic only; no torch.

Counts follow `transformer.py`, `parallel/embedding.py` and `generation/decoder.py`. The time is that of a stated,
simple model: starting a collective, some steps around a ring of ranks, and its bytes over one link. It leaves out the
waiting for slower ranks.
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
    """What carries collectives: seconds to start one, seconds a step of the ring, bytes a second each way."""

    name: str
    start_s: float
    step_s: float
    bytes_per_s: float
    source: str

    @property
    def described(self) -> str:
        """The constants and where they come from."""
        return (
            f"{self.name}: {self.start_s * 1e6:g} us a collective, {self.step_s * 1e6:g} us a step of its ring, "
            f"{self.bytes_per_s / 1e9:g} GB/s ({self.source})"
        )


NVLINK = Link(
    name="NCCL over NVLink",
    start_s=8e-6,
    step_s=1e-6,
    bytes_per_s=200e9,
    source="assumed, not measured; PCIe has about a tenth of the bandwidth",
)
LOOPBACK = Link(
    name="gloo on loopback",
    start_s=300e-6,
    step_s=300e-6,
    bytes_per_s=1.5e9,
    source="measured while two ranks decoded on two cores; several times slower where ranks share cores",
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
        """What each rank sends for one of them."""
        if self.kind == "broadcast":
            return self.payload_bytes
        once = self.payload_bytes * (ranks - 1) / ranks
        return 2 * once if self.kind == "all-reduce" else once

    def seconds(self, ranks: int, link: Link) -> float:
        """All `count` of them, one after the other."""
        return self.count * (link.start_s + self.steps(ranks) * link.step_s + self.sent_bytes(ranks) / link.bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The collectives of one decoding step: a token in each of `batch` rows."""

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
        """What each rank sends."""
        return round(sum(each.count * each.sent_bytes(self.ranks) for each in self.collectives))

    def seconds(self, link: Link) -> float:
        return sum(each.seconds(self.ranks, link) for each in self.collectives)


def traffic_of(params: Params, split: Split, embedding_dim: int, batch: int, itemsize: int) -> Traffic:
    """The collectives of one decoding step; none where a rank is alone."""
    if split.mp == 1:
        return Traffic(ranks=1, batch=batch, collectives=())
    hidden_bytes = batch * params.dim * itemsize
    # Narrower shares are filled up to the widest before they are gathered.
    columns = split.mp * max(own.size for own in split.width)
    logits = split.mp * max(own.size for own in split.vocabulary)
    embedding = (
        Collective(kind="all-reduce", what="embedding", count=1, payload_bytes=hidden_bytes)
        if embedding_dim == 0
        else Collective(kind="all-gather", what="embedding", count=1, payload_bytes=batch * columns * itemsize)
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
