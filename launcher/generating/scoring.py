"""The `score` command: how likely a text is to the model."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from launcher.console import ProgressLine
from launcher.generating.answers import Answer
from launcher.generating.output import open_output
from launcher.generating.preflight import Ready
from launcher.generating.requests import Request
from launcher.settings.options import GenerationSection, RunOptions, ScoreSection
from model.building import check_plain_weights_fit
from model.generation.scoring import Score
from model.llama import Llama
from parallel import World

_LABEL_WIDTH = 12


@dataclass(slots=True, kw_only=True)
class ScoredText(Answer):
    """What came back for a text: no tokens, but how likely its own are.

    `plain`: the same of the plain weights, where `quantize` is not none and they were asked for.
    """

    found: Score
    quantize: str = "none"
    plain: Score | None = None

    def as_json(self, _ready: Ready, _section: GenerationSection) -> str:
        """One line, without its end."""
        request, found = self.request, self.found
        fields = {
            "index": request.index,
            **request.asked,
            "generation": "",
            "prompt_tokens": request.tokens,
            "tokens": [],
            "logprobs": [None, *found.logprobs],
            "finish_reason": "length",
            "perplexity": _finite(found.perplexity),
            "nats_per_token": found.nats_per_token,
            "bits_per_byte": found.bits_per_byte(self._text_bytes),
            "scored_tokens": found.scored_tokens,
            "window_tokens": found.window_tokens,
            "stride": found.stride,
        }
        fields |= self._comparison()
        return json.dumps(fields, ensure_ascii=False)

    def as_text(self, _ready: Ready, _section: GenerationSection) -> str:
        """A line for each number."""
        found, text_bytes = self.found, self._text_bytes
        nats, windows = found.nats_per_token, found.windows
        held = f"{windows} of {found.window_tokens} tokens, each {found.stride} behind the one before"
        lines = {
            "perplexity": f"{found.perplexity:.6g}",
            **self._comparison_lines(),
            "nats": f"{nats:.6g} a token ({nats / math.log(2):.6g} bits)",
            "tokens": f"{found.scored_tokens} scored, all but the first (bos)",
            "bytes": f"{text_bytes} of text, {found.bits_per_byte(text_bytes):.6g} bits each",
            "windows": held if windows > 1 else f"1, of {len(found.tokens)} tokens",
        }
        return "\n".join(f"{label:<{_LABEL_WIDTH}}{line}" for label, line in lines.items())

    @property
    def _text_bytes(self) -> int:
        return len(str(self.request.asked["prompt"]).encode())

    @property
    def _ratio(self) -> float:
        """How many times the perplexity of the plain weights the quantised ones have."""
        assert self.plain is not None
        return self.found.perplexity / self.plain.perplexity

    def _comparison(self) -> dict[str, object]:
        if self.quantize == "none":
            return {}
        compared = (None, None) if self.plain is None else (_finite(self.plain.perplexity), _finite(self._ratio))
        return {"quantize": self.quantize, "perplexity_plain": compared[0], "perplexity_ratio": compared[1]}

    def _comparison_lines(self) -> dict[str, str]:
        if self.quantize == "none":
            return {}
        if self.plain is None:
            return {"weights": f"{self.quantize}, not compared with the plain ones"}
        times = f"{self.quantize} makes it {self._ratio:.6g} times that"
        return {"plain": f"{self.plain.perplexity:.6g} with the weights as they are: {times}"}


def _finite(number: float) -> float | None:
    """JSON has no word for infinity."""
    return number if math.isfinite(number) else None


def score_text(world: World, options: RunOptions, ready: Ready, load: Callable[[str], Llama]) -> None:
    """Score the text; rank 0 prints or writes. `load`: the model with its weights quantised so. Collective."""
    section, quantize = options.generation, options.model.quantize
    assert isinstance(section, ScoreSection)
    with open_output(world, options, ready) as output:
        if output.first < len(ready.requests):
            (request,) = ready.requests
            plain = None
            if quantize != "none" and section.compare_plain:
                check_plain_weights_fit(ready.found, world, options.model.dtype)
                plain = _score(load("none"), section, request, "scoring with the plain weights")
            found = _score(load(quantize), section, request, "scoring")
            output.hold([ScoredText(request, found=found, quantize=quantize, plain=plain)])
            output.release()
        output.finish()


def _score(llama: Llama, section: ScoreSection, request: Request, doing: str) -> Score:
    progress = ProgressLine(doing, "tokens", enabled=llama.world.env.rank == 0)
    return llama.score(request.tokens, section.stride, progress=progress)
