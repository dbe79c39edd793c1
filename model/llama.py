"""`Llama`: a checkpoint, its tokenizer and its ranks, with the methods of Meta's class of that name.

Signatures, defaults and return shapes follow llama `generation.py`, so that its example scripts run with
only their import changed. Under torchrun every rank must call each method, with the same arguments.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NotRequired, TypedDict

from model.building import build_model
from model.chat import UNSAFE_ERROR, Dialog, Message, chat_format
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress
from model.checkpoint.reading import check_in_place
from model.generate import Event, Generation, Settings, check_prompts
from model.looking import Found, look
from model.placing import check_room
from model.tokenizers.base import Tokenizer
from model.transformer import Transformer
from parallel import RefusedError, World, start_world
from parallel.seed import seed_everything


class CompletionPrediction(TypedDict):
    generation: str
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


class ChatPrediction(TypedDict):
    generation: Message
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


class Llama:
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
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.world = world
        self.max_seq_len = max_seq_len
        self.max_batch_size = max_batch_size
        self.seed = seed
        self.checkpoint = checkpoint
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
        progress: Progress | None = None,
        world: World | None = None,
    ) -> "Llama":
        """Meet the other ranks, check the checkpoint, load this rank's share. Collective.

        Reads torchrun's variables; without them it runs in this process alone. `tokenizer_path=None` looks
        in `ckpt_dir` and its parent; where there is none, `generate` still works on ids. `world`: ranks that
        have met already. `strict_mp`: refuse a number of ranks that is not the number of shards, rather than cut
        them anew while loading. Raises RefusedError, the same on every rank, for whatever a user can mend.
        """
        if max_seq_len < 1 or max_batch_size < 1:
            raise RefusedError(
                f"max_seq_len is {max_seq_len}, max_batch_size {max_batch_size}; wanted 1 or more of each"
            )
        world = world or start_world(device=device, backend=backend)
        asked = {"max_seq_len": max_seq_len, "max_batch_size": max_batch_size, "seed": seed, "dtype": dtype}
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
        return Llama.load(found, world, max_seq_len, max_batch_size, seed, dtype=dtype, progress=progress)

    @staticmethod
    def load(
        found: Found,
        world: World,
        max_seq_len: int,
        max_batch_size: int,
        seed: int = 1,
        *,
        dtype: str = "auto",
        progress: Progress | None = None,
    ) -> "Llama":
        """Load this rank's share of a checkpoint that was looked at, among ranks that have met. Collective."""
        model = build_model(found, world, dtype, progress)
        seed_everything(seed)
        return Llama(model, found.tokenizer, world, max_seq_len, max_batch_size, seed, found.checkpoint)

    def start(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int | None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
        eos_ids: Sequence[int] | None = None,
    ) -> Generation:
        """Check a batch and make ready to generate it; iterate its `events()` to stream. Collective.

        Prompts are counted over the life of this object: prompt i draws the same random numbers in
        whatever batches it comes. `eos_ids`: what ends a row (default: the tokenizer's eos).
        """
        check_prompts(prompt_tokens, self.model.params.vocab_size, self.max_seq_len)
        if len(prompt_tokens) > self.max_batch_size:
            raise RefusedError(
                f"{len(prompt_tokens)} prompts in one batch but max_batch_size is "
                f"{self.max_batch_size}; split them, or build "
                "with a larger max_batch_size"
            )
        if eos_ids is None:
            eos_ids = [] if self.tokenizer is None else sorted(self.tokenizer.stop_ids)
        settings = Settings(
            max_gen_len=max(1, self.max_seq_len - 1) if max_gen_len is None else max_gen_len,
            max_seq_len=self.max_seq_len,
            temperature=temperature,
            top_p=top_p,
            seed=self.seed,
            logprobs=logprobs,
            echo=echo,
            eos_ids=frozenset(eos_ids),
        )
        text = json.dumps([list(map(list, prompt_tokens)), str(settings)])
        self.world.agree("generate", {"prompts and settings": hashlib.sha256(text.encode()).hexdigest()})
        first = self._prompts_served
        generation = Generation(self.model, prompt_tokens, settings, range(first, first + len(prompt_tokens)))
        self.world.together(
            "making room for the KV cache",
            lambda: self._check_batch(generation),
        )
        self._prompts_served += len(prompt_tokens)
        return generation

    def _check_batch(self, generation: Generation) -> None:
        if self.checkpoint is not None and self.world.device.type == "cpu":
            # Weights may stay in their files, so these must not change under a running model.
            check_in_place(self.checkpoint)
        ranks = self.world.env.local_world_size
        check_room(generation.cache_bytes, self.world.device, ranks, "the KV cache of this batch")

    def generate(
        self,
        prompt_tokens: list[list[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Ids generated behind each prompt, without the end token, and their natural log-probabilities. Collective.

        `echo` puts the prompt in front; its first token has log-probability 0.0, as Meta's.
        """
        return self._generate(prompt_tokens, max_gen_len, temperature, top_p, logprobs, echo)

    def _generate(
        self,
        prompt_tokens: list[list[int]],
        max_gen_len: int,
        temperature: float,
        top_p: float,
        logprobs: bool,
        echo: bool = False,
        eos_ids: Sequence[int] | None = None,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        generation = self.start(prompt_tokens, max_gen_len, temperature, top_p, logprobs, echo, eos_ids)
        tokens: list[list[int]] = [[] for _ in prompt_tokens]
        values: list[list[float]] = [[] for _ in prompt_tokens]
        for event in generation.events():
            _take(event, tokens, values)
        if echo:
            tokens = [[*prompt, *new] for prompt, new in zip(prompt_tokens, tokens, strict=True)]
        if not logprobs:
            return tokens, None
        if echo:
            known = generation.prompt_logprobs
            values = [[0.0, *before, *new] for before, new in zip(known, values, strict=True)]
        return tokens, values

    def text_completion(
        self,
        prompts: list[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Continue each text. Collective. With `logprobs`, also the text of each token and its log-probability."""
        tokenizer = self.text_tokenizer()
        ids = [self.encode_prompt(prompt, index) for index, prompt in enumerate(prompts)]
        tokens, values = self.generate(ids, self._length(max_gen_len), temperature, top_p, logprobs, echo)
        if values is None:
            return [{"generation": tokenizer.decode(row)} for row in tokens]
        return [
            {"generation": tokenizer.decode(row), "tokens": [tokenizer.decode(one) for one in row], "logprobs": known}
            for row, known in zip(tokens, values, strict=True)
        ]

    def chat_completion(
        self,
        dialogs: list[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """Answer each dialog, in the format of the tokenizer's family. Collective.

        A dialog that holds Llama 2's own tags is not answered; Llama 3's are control tokens, which no text spells.
        """
        tokenizer = self.text_tokenizer()
        form = chat_format(tokenizer)
        for index, dialog in enumerate(dialogs):
            form.check(dialog, index)
        ids = []
        for index, dialog in enumerate(dialogs):
            with _naming(f"dialog {index}"):
                ids.append(form.encode(dialog))
        stops = sorted(tokenizer.chat_stop_ids)
        tokens, values = self._generate(ids, self._length(max_gen_len), temperature, top_p, logprobs, eos_ids=stops)
        answers: list[ChatPrediction] = []
        for row, (dialog, new) in enumerate(zip(dialogs, tokens, strict=True)):
            content = UNSAFE_ERROR if form.is_unsafe(dialog) else tokenizer.decode(new)
            answers.append({"generation": {"role": "assistant", "content": content}})
            if values is not None:
                answers[-1]["tokens"] = [tokenizer.decode(one) for one in new]
                answers[-1]["logprobs"] = values[row]
        return answers

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer; RefusedError where the model was built without one."""
        if self.tokenizer is None:
            raise RefusedError(
                "text needs a tokenizer, and there is no tokenizer.model or tokenizer.json in the checkpoint folder or "
                "its parent; give "
                "--tokenizer_path, or use generate() on ids"
            )
        return self.tokenizer

    def encode_prompt(self, prompt: object, index: int) -> list[int]:
        """Ids of a prompt, bos in front; RefusedError names its index."""
        if not isinstance(prompt, str):
            raise RefusedError(f"prompt {index} is {prompt!r}; wanted a text")
        with _naming(f"prompt {index}"):
            return self.text_tokenizer().encode(prompt, bos=True, eos=False)

    def _length(self, max_gen_len: int | None) -> int:
        return max(1, self.max_seq_len - 1) if max_gen_len is None else max_gen_len


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put the name of what is being worked on before a refusal."""
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"{what}: {error}") from None


def _take(event: Event, tokens: list[list[int]], values: list[list[float]]) -> None:
    if event.token is not None:
        tokens[event.row].append(event.token)
    if event.logprob is not None and event.token is not None:
        values[event.row].append(event.logprob)
