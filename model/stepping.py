"""A decoding step of a batch: the model over one new token in each row, again and again in the same memory.

The first step is done as any pass is, and the kernels that it calls are recorded; from then on they are called without
Python in between. Where a step does more than call kernels (gloo's collectives, another dtype, more rows than the
kernels take), every step is an ordinary pass; hooks on layers are only called in those. The numbers are the same either
way: the same kernels do the work.
"""

from torch import Tensor

from model.cache import KVCache
from model.rope import Turns
from model.transformer import Transformer
from parallel.kernels.attention import can_step
from parallel.kernels.calls import Program, recording


class Step:
    """Called with the tokens of a step [B, 1]; gives hidden states [B, 1, D], which the next step overwrites.
    Collective."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self._recorded: _Recorded | None = None
        # What a GPU is told to do is not seen here: capturing.py is for those.
        self._recordable = model.device.type == "cpu"

    def __call__(self, tokens_B1: Tensor, watched: bool = False) -> Tensor:
        """`watched`: somebody looks at what single layers put out, so these must be called one by one."""
        # More rows than the kernels take: torch's operations would not be recorded, only kept from being freed.
        if watched or not self._recordable or not can_step(self.model.norm.weight.detach(), len(tokens_B1)):
            return self.model(tokens_B1, self.cache)  # type: ignore[no-any-return]
        self.cache.plan(1)
        x_B1D = self.model.tok_embeddings(tokens_B1)
        if self._recorded is None or not self._recorded.holds(self.cache):
            recorded = _Recorded(self.model, self.cache, x_B1D)
            self._recordable = not recorded.program.missing
            self._recorded = recorded if self._recordable else None
            return recorded.hidden_B1D
        return self._recorded(x_B1D)


class _Recorded:
    """The layers of a step, called once while this is made."""

    def __init__(self, model: Transformer, cache: KVCache, x_B1D: Tensor) -> None:
        self._memory = cache.memory
        self._model = model
        self._places = [weight.data_ptr() for weight in model.parameters()]
        self.program = Program()
        self.x_B1D = x_B1D
        turns = Turns(model.turns(cache.max_tokens), cache.positions_BT)
        with recording(self.program):
            self.hidden_B1D = model.through_layers(x_B1D, turns, cache)

    def holds(self, cache: KVCache) -> bool:
        """Whether cache and weights are still where they were."""
        return cache.memory is self._memory and self._places == [one.data_ptr() for one in self._model.parameters()]

    def __call__(self, x_B1D: Tensor) -> Tensor:
        self.x_B1D.copy_(x_B1D)
        self.program.run()
        return self.hidden_B1D
