"""`Llama`: a checkpoint, its tokenizer and its ranks, with the methods of Meta's class of that name.

Signatures, defaults and return shapes follow llama `generation.py`, so that its example scripts run with
only their import changed. Under torchrun every rank must call each method, with the same arguments.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Unpack

from model.building import build_model
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress
from model.checkpoint.reading import check_in_place
from model.generation.generate import Generation
from model.generation.scoring import Score, Scoring
from model.generation.settings import Event, How, Settings, check_eos_ids, check_prompts
from model.generation.stopping import check_stops
from model.looking import Found, look
from model.placing import check_room
from model.quantising import Progress as QuantisingProgress
from model.text_methods import TextMethods
from model.tokenizers.base import Tokenizer
from model.transformer import Transformer
from model.weight_sums import WeightSums
from parallel import RefusedError, World, start_world
from parallel.seed import seed_everything


class Llama(TextMethods):
    """A loaded model. Make one with `Llama.build`."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        world: World,
        max_seq_len: int,
        max_batch_size: int,
        seed: int,
        checkpoint: Checkpoint | None = None,
        weight_sums: WeightSums | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.world = world
        self.max_seq_len = max_seq_len
        self.max_batch_size = max_batch_size
        self.seed = seed
        self.checkpoint = checkpoint
        self.weight_sums = weight_sums
        self._prompts_served = 0

    @staticmethod
    def build(
        ckpt_dir: str,
        tokenizer_path: str | None,
        max_seq_len: int,
        max_batch_size: int,
        model_parallel_size: int | None = None,
        seed: int = 1,
        *,
        dtype: str = "auto",
        device: str = "auto",
        backend: str = "auto",
        allow_legacy: bool = False,
        strict_mp: bool = False,
        exact: bool = False,
        check_weights: bool = False,
        quantize: str = "none",
        progress: Progress | None = None,
        world: World | None = None,
    ) -> "Llama":
        """Meet the other ranks, check the checkpoint, load this rank's share. Collective.

        Reads torchrun's variables; without them it runs in this process alone. `tokenizer_path=None` looks
        in `ckpt_dir` and its parent; where there is none, `generate` still works on ids. `world`: ranks that
        have met already. `strict_mp`: refuse a number of ranks that is not the number of shards, rather than cut
        them anew while loading. `exact`: logits that are the same to the bit at every MP that divides the model evenly
        (docs/adr/0011-exact-mode.md). `check_weights`: see the method `check`. `quantize`: "int8" or "int4" for weights
        in so few bits (docs/adr/0018-quantised-weights.md); `dtype` is then that of all else. Raises RefusedError, the
        same on every rank, for whatever a user can mend.
        """
        if max_seq_len < 1 or max_batch_size < 1:
            raise RefusedError(
                f"max_seq_len is {max_seq_len}, max_batch_size {max_batch_size}; wanted 1 or more of each"
            )
        world = world or start_world(device=device, backend=backend)
        asked = {"max_seq_len": max_seq_len, "max_batch_size": max_batch_size, "seed": seed, "dtype": dtype}
        asked |= {"exact": exact, "check_weights": check_weights, "quantize": quantize}
        world.agree("Llama.build", asked)
        ranks = world.mesh.size
        if model_parallel_size not in (None, ranks):
            raise RefusedError(
                f"model_parallel_size is {model_parallel_size} but {ranks} ranks were started; MP is the number of "
                f"ranks: start {model_parallel_size}, or leave model_parallel_size out"
            )
        found = world.together(
            "reading the checkpoint's headers",
            lambda: look(ckpt_dir, tokenizer_path, ranks, allow_legacy=allow_legacy, strict_mp=strict_mp),
        )
        return Llama.load(
            found,
            world,
            max_seq_len,
            max_batch_size,
            seed,
            dtype=dtype,
            exact=exact,
            check_weights=check_weights,
            quantize=quantize,
            progress=progress,
        )

    @staticmethod
    def load(
        found: Found,
        world: World,
        max_seq_len: int,
        max_batch_size: int,
        seed: int = 1,
        *,
        dtype: str = "auto",
        exact: bool = False,
        check_weights: bool = False,
        quantize: str = "none",
        progress: Progress | None = None,
        quantising_progress: QuantisingProgress | None = None,
    ) -> "Llama":
        """Load this rank's share of a checkpoint that was looked at, among ranks that have met. Collective."""
        model = build_model(found, world, dtype, progress, exact, quantize, quantising_progress)
        seed_everything(seed)
        sums = WeightSums(model) if check_weights else None
        return Llama(model, found.tokenizer, world, max_seq_len, max_batch_size, seed, found.checkpoint, sums)

    def start(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int | None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
        eos_ids: Sequence[int] | None = None,
        indices: Sequence[int] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        **how: Unpack[How],
    ) -> Generation:
        """Check a batch and make ready to generate it; iterate its `events()` to stream. Collective.

        Each prompt draws the random numbers of its index, in whatever batch it comes: `indices`, or else prompts
        are counted over the life of this object. `eos_ids`: what ends a row (default: the tokenizer's eos).
        `interrupted`: asked on rank 0 at every step; true ends the answers where they are.
        """
        check_prompts(prompt_tokens, self.model.params.vocab_size, self.max_seq_len)
        if eos_ids is None:
            eos_ids = [] if self.tokenizer is None else sorted(self.tokenizer.stop_ids)
        check_eos_ids(eos_ids, self.model.params.vocab_size)
        how["stop"] = stop = check_stops(how.get("stop", ()))
        settings = Settings(
            max_gen_len=self._length(max_gen_len),
            max_seq_len=self.max_seq_len,
            temperature=temperature,
            top_p=top_p,
            seed=self.seed,
            logprobs=logprobs,
            echo=echo,
            eos_ids=frozenset(eos_ids),
            **how,
        )
        self._check_size(len(prompt_tokens), settings.width)
        text = json.dumps([list(map(list, prompt_tokens)), str(settings)])
        self.world.agree("generate", {"prompts and settings": hashlib.sha256(text.encode()).hexdigest()})
        if indices is None:
            indices = range(self._prompts_served, self._prompts_served + len(prompt_tokens))
            self._prompts_served += len(prompt_tokens)
        tokenizer = self.text_tokenizer() if stop else self.tokenizer
        generation = Generation(self.model, prompt_tokens, settings, indices, tokenizer, interrupted)
        self._check_before(generation.cache_bytes)
        return generation

    def score(self, text: str | Sequence[int], stride: int | None = None, *, progress: Progress | None = None) -> Score:
        """How likely a text is (or ids, bos in front), of any length: log-probabilities and perplexity. Collective.

        It is looked at through windows of max_seq_len tokens that move on by `stride` (default: half of that),
        max_batch_size of them at a time. Each token is scored in the first window that holds it.
        """
        tokens = self.encode_prompt(text, 0) if isinstance(text, str) else list(text)
        check_prompts([tokens], self.model.params.vocab_size, max_seq_len=len(tokens))
        scoring = Scoring(self.model, tokens, self.max_seq_len, self.max_batch_size, stride)
        asked = json.dumps([tokens, scoring.stride])
        self.world.agree("score", {"text and stride": hashlib.sha256(asked.encode()).hexdigest()})
        self._check_before(scoring.cache_bytes)
        score = scoring.run(progress)
        self.check()
        return score

    def check(self) -> None:
        """RankFailedError where the weights are no longer what was loaded, as far as can be told. Collective.

        On a CPU they may stay in their files, which must not have been written over; and where the model was built with
        `check_weights`, every weight is compared. `generate`, `score` and the text methods end with it.
        """
        self.world.together("looking at the weights' files", self._check_files)
        if self.weight_sums is not None:
            self.weight_sums.check(self.world)

    def _check_size(self, prompts: int, width: int) -> None:
        if width > self.max_batch_size:
            raise RefusedError(
                f"each prompt has {width} sequences (num_beams, num_return_sequences) but max_batch_size is "
                f"{self.max_batch_size}, which counts sequences; ask for fewer, or raise max_batch_size"
            )
        if prompts * width > self.max_batch_size:
            each = f" of {width} sequences each" if width > 1 else ""
            raise RefusedError(
                f"{prompts} prompts{each} in one batch but max_batch_size is {self.max_batch_size}; split them, or "
                "build with a larger max_batch_size"
            )

    def _check_files(self) -> None:
        """On a CPU weights may stay in their files, so these must not change under a running model."""
        if self.checkpoint is not None and self.world.device.type == "cpu":
            check_in_place(self.checkpoint)

    def _check_before(self, cache_bytes: int) -> None:
        """What can be seen before a batch is run. Collective."""

        def see() -> None:
            self._check_files()
            ranks = self.world.env.local_world_size
            check_room(cache_bytes, self.world.device, ranks, "the KV cache of this batch")

        self.world.together("making room for the KV cache", see)

    def generate(
        self,
        prompt_tokens: list[list[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
        *,
        eos_ids: Sequence[int] | None = None,
        **how: Unpack[How],
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Ids generated behind each prompt, without the end token, and their natural log-probabilities. Collective.

        `echo` puts the prompt in front; its first token has log-probability 0.0, as Meta's. With
        `num_return_sequences` a prompt's answers stand one after the other.
        """
        generation = self.start(prompt_tokens, max_gen_len, temperature, top_p, logprobs, echo, eos_ids, **how)
        copies = generation.settings.num_return_sequences
        prompts = [prompt for prompt in prompt_tokens for _ in range(copies)]
        tokens: list[list[int]] = [[] for _ in prompts]
        values: list[list[float]] = [[] for _ in prompts]
        for event in generation.events():
            _take(event, tokens, values)
        self.check()
        if echo:
            tokens = [[*prompt, *new] for prompt, new in zip(prompts, tokens, strict=True)]
        if not logprobs:
            return tokens, None
        if echo:
            known = [before for before in generation.prompt_logprobs for _ in range(copies)]
            values = [[0.0, *before, *new] for before, new in zip(known, values, strict=True)]
        return tokens, values


def _take(event: Event, tokens: list[list[int]], values: list[list[float]]) -> None:
    if event.token is not None:
        tokens[event.row].append(event.token)
    if event.logprob is not None and event.token is not None:
        values[event.row].append(event.logprob)
