"""The sizes of a Llama, and its rotary base.

Facts by generation: llama `model.py` (ModelArgs), llama3 `model.py`, and the published files. Nothing
is guessed from a family's name; whatever is derived can be printed with its reason (`rope_reason`).
"""

from dataclasses import dataclass, replace

LLAMA_3_VOCABULARY = 128256


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the slow rotary frequencies (arXiv:2407.21783, section 3.4)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_tokens: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Full, uncut sizes of a decoder. `vocab_size` is -1 where the file leaves it to the tokenizer."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rope_reason: str
    # What the file says of the rotary base; None where these sizes do not come from a file.
    rope_given: "GivenRope | None" = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def with_vocab_size(self, vocab_size: int) -> "Params":
        """These sizes with the vocabulary that was found; it may tell the rotary base (see `_rope`)."""
        if self.rope_given is None:
            return replace(self, vocab_size=vocab_size)
        theta, scaling, reason = rope_of(self.rope_given, self.dim, vocab_size)
        return replace(self, vocab_size=vocab_size, rope_theta=theta, rope_scaling=scaling, rope_reason=reason)

    @property
    def n_parameters(self) -> int:
        """Numbers stored, embedding and output both counted."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.n_kv_heads * self.head_dim
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return self.n_layers * layer + 2 * self.vocab_size * self.dim + self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenRope:
    """The keys of params.json that decide the rotary embedding; None where one is absent."""

    theta: float | None
    scaled: bool
    factor: float | None


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of the feed-forward layer (llama `model.py`, FeedForward)."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def rope_of(given: GivenRope, dim: int, vocab_size: int) -> tuple[float, RopeScaling | None, str]:
    """The rotary base, its scaling, and where both come from."""
    if given.theta is not None:
        theta, reason = given.theta, "base from params.json"
    elif vocab_size == LLAMA_3_VOCABULARY:
        theta, reason = 500000.0, f"base 500000: absent, and a vocabulary of {LLAMA_3_VOCABULARY} is Llama 3's"
    else:
        theta, reason = 10000.0, "base 10000: absent, as in Llama 1 and 2"
    if not given.scaled:
        return theta, None, reason
    if given.factor is not None:
        factor, why = given.factor, "from params.json"
    elif dim in (2048, 3072) and vocab_size == LLAMA_3_VOCABULARY:
        factor, why = 32.0, "the shape is Llama 3.2's; rope_scaling_factor in params.json overrides"
    else:
        factor, why = 8.0, "Llama 3.1's; rope_scaling_factor in params.json overrides"
    return theta, RopeScaling(factor=factor), f"{reason}; scaled by {factor:g} ({why})"
