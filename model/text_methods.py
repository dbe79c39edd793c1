"""The methods of `Llama` that take and give text: completion, streams, chat and infilling.

Signatures, defaults and return shapes are those of Meta's llama and codellama `generation.py`; what stands behind
the star, and `**how`, is ours. All are collective: every rank calls them with the same arguments.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

from model.chat import UNSAFE_ERROR, Dialog, Message, chat_format
from model.generation.generate import Generation
from model.generation.settings import FinishReason, How
from model.generation.stopping import AnswerStream, answer_text, lead_of
from model.infill import check_can_infill, infill_context, infill_ids, infill_stop_ids
from model.tokenizers.base import Tokenizer
from model.transformer import Transformer
from parallel.errors import RefusedError


class CompletionPrediction(TypedDict):
    generation: str
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


class ChatPrediction(TypedDict):
    generation: Message
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


class InfillingPrediction(TypedDict):
    generation: str
    full_text: str
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


@dataclass(frozen=True, slots=True)
class TextEvent:
    """What a step added to the text of one answer (it may be nothing), and how it ended where it did."""

    row: int
    text: str
    finish_reason: FinishReason | None


class TextMethods(ABC):
    """What a `Llama` does with text, by its methods that work on ids."""

    model: Transformer
    tokenizer: Tokenizer | None
    max_seq_len: int

    @abstractmethod
    def start(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int | None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
        eos_ids: Sequence[int] | None = None,
        **how: Unpack[How],
    ) -> Generation:
        """Check a batch and make ready to generate it."""

    @abstractmethod
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
        """Ids generated behind each prompt."""

    @abstractmethod
    def check(self) -> None:
        """See that the weights are what was loaded, where that was asked for."""

    def text_completion(
        self,
        prompts: list[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
        **how: Unpack[How],
    ) -> list[CompletionPrediction]:
        """Continue each text. Collective. With `logprobs`, also the text of each token and its log-probability.

        With `num_return_sequences` a prompt's answers stand one after the other.
        """
        ids = self._encoded(prompts)
        tokens, values = self.generate(ids, self._length(max_gen_len), temperature, top_p, logprobs, echo, **how)
        found: list[CompletionPrediction] = []
        for row, new in enumerate(tokens):
            text = self._text(new, how) if not echo else self._echoed(ids[row * len(ids) // len(tokens)], new, how)
            found.append({"generation": text})
            if values is not None:
                found[-1]["tokens"], found[-1]["logprobs"] = self._pieces(new), values[row]
        return found

    def stream_completion(
        self,
        prompts: list[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        **how: Unpack[How],
    ) -> Iterator[TextEvent]:
        """Continue each text, giving it out as it comes: the pieces of a row put together are its text. Collective.

        Never half a character, and never a part of a stop string. Every rank must iterate to the end.
        """
        tokenizer = self.text_tokenizer()
        ids = self._encoded(prompts)
        generation = self.start(ids, max_gen_len, temperature, top_p, **how)
        rows = len(ids) * generation.settings.num_return_sequences
        streams = [AnswerStream(tokenizer, generation.settings.stop) for _ in range(rows)]
        for event in generation.events():
            text = "" if event.token is None else streams[event.row].push(event.token)
            if event.finish_reason is not None:
                text += streams[event.row].finish()
            yield TextEvent(event.row, text, event.finish_reason)
        self.check()

    def chat_completion(
        self,
        dialogs: list[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        **how: Unpack[How],
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
        stops, length = sorted(tokenizer.chat_stop_ids), self._length(max_gen_len)
        tokens, values = self.generate(ids, length, temperature, top_p, logprobs, eos_ids=stops, **how)
        answers: list[ChatPrediction] = []
        for row, new in enumerate(tokens):
            dialog = dialogs[row * len(dialogs) // len(tokens)]
            content = UNSAFE_ERROR if form.is_unsafe(dialog) else self._text(new, how)
            answers.append({"generation": {"role": "assistant", "content": content}})
            if values is not None:
                answers[-1]["tokens"], answers[-1]["logprobs"] = self._pieces(new), values[row]
        return answers

    def text_infilling(
        self,
        prefixes: list[str],
        suffixes: list[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        suffix_first: bool = False,
        **how: Unpack[How],
    ) -> list[InfillingPrediction]:
        """Fill in what stands between each prefix and its suffix (Code Llama 7B and 13B). Collective.

        `suffix_first`: the suffix-prefix-middle format. RefusedError says why a model cannot.
        """
        tokenizer = self.text_tokenizer()
        check_can_infill(self.model.params, tokenizer)
        if len(prefixes) != len(suffixes):
            raise RefusedError(f"{len(prefixes)} prefixes and {len(suffixes)} suffixes; wanted as many of each")
        ids = []
        for index, (prefix, suffix) in enumerate(zip(prefixes, suffixes, strict=True)):
            with _naming(f"prompt {index}"):
                ids.append(infill_ids(tokenizer, prefix, suffix, suffix_first))
        stops, length = sorted(infill_stop_ids(tokenizer)), self._length(max_gen_len)
        how["context"] = context = infill_context(tokenizer)
        tokens, values = self.generate(ids, length, temperature, top_p, logprobs, eos_ids=stops, **how)
        found: list[InfillingPrediction] = []
        for row, new in enumerate(tokens):
            middle, prompt = self._text(new, how, context), row * len(ids) // len(tokens)
            found.append({"generation": middle, "full_text": prefixes[prompt] + middle + suffixes[prompt]})
            if values is not None:
                found[-1]["tokens"], found[-1]["logprobs"] = self._pieces(new), values[row]
        return found

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

    def _encoded(self, prompts: Sequence[str]) -> list[list[int]]:
        if isinstance(prompts, str):
            raise RefusedError(f"prompts are one text, {prompts[:40]!r}; wanted a list of texts")
        return [self.encode_prompt(prompt, index) for index, prompt in enumerate(prompts)]

    def _length(self, max_gen_len: int | None) -> int:
        return max(1, self.max_seq_len - 1) if max_gen_len is None else max_gen_len

    def _text(self, tokens: Sequence[int], how: How, context: Sequence[int] = ()) -> str:
        """The text of an answer, cut before its stop string."""
        return answer_text(self.text_tokenizer(), tokens, tuple(how.get("stop", ())), context)

    def _echoed(self, prompt: Sequence[int], tokens: Sequence[int], how: How) -> str:
        """The text of a prompt and its answer, which stand together in `tokens`."""
        tokenizer, new = self.text_tokenizer(), tokens[len(prompt) :]
        if not how.get("stop"):
            return tokenizer.decode(tokens)
        return tokenizer.decode(prompt) + lead_of(tokenizer, prompt, new) + self._text(new, how)

    def _pieces(self, tokens: Sequence[int]) -> list[str]:
        return [self.text_tokenizer().decode(one) for one in tokens]


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put the name of what is being worked on before a refusal."""
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"{what}: {error}") from None
