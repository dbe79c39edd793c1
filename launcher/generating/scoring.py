"""The `score` command: how likely a text is to the model."""

import json
import math
from dataclasses import dataclass

from launcher.console import ProgressLine
from launcher.generating.answers import Answer
from launcher.generating.output import open_output
from launcher.generating.preflight import Ready
from launcher.settings.options import GenerationSection, RunOptions, ScoreSection
from model.generation.scoring import Score
from model.llama import Llama

_LABEL_WIDTH = 12


@dataclass(slots=True, kw_only=True)
class ScoredText(Answer):
    """What came back for a text: no tokens, but how likely its own are."""

    found: Score

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
            # JSON has no word for infinity.
            "perplexity": found.perplexity if math.isfinite(found.perplexity) else None,
            "nats_per_token": found.nats_per_token,
            "bits_per_byte": found.bits_per_byte(self._text_bytes),
            "scored_tokens": found.scored_tokens,
            "window_tokens": found.window_tokens,
            "stride": found.stride,
        }
        return json.dumps(fields, ensure_ascii=False)

    def as_text(self, _ready: Ready, _section: GenerationSection) -> str:
        """A line for each number."""
        found, text_bytes = self.found, self._text_bytes
        nats, windows = found.nats_per_token, found.windows
        held = f"{windows} of {found.window_tokens} tokens, each {found.stride} behind the one before"
        lines = {
            "perplexity": f"{found.perplexity:.6g}",
            "nats": f"{nats:.6g} a token ({nats / math.log(2):.6g} bits)",
            "tokens": f"{found.scored_tokens} scored, all but the first (bos)",
            "bytes": f"{text_bytes} of text, {found.bits_per_byte(text_bytes):.6g} bits each",
            "windows": held if windows > 1 else f"1, of {len(found.tokens)} tokens",
        }
        return "\n".join(f"{label:<{_LABEL_WIDTH}}{line}" for label, line in lines.items())

    @property
    def _text_bytes(self) -> int:
        return len(str(self.request.asked["prompt"]).encode())


def score_text(llama: Llama, options: RunOptions, ready: Ready) -> None:
    """Score the text; rank 0 prints or writes. Collective."""
    section = options.generation
    assert isinstance(section, ScoreSection)
    with open_output(llama.world, options, ready) as output:
        if output.first < len(ready.requests):
            (request,) = ready.requests
            progress = ProgressLine("scoring", "tokens", enabled=llama.world.env.rank == 0)
            found = llama.score(request.tokens, section.stride, progress=progress)
            output.hold([ScoredText(request, found=found)])
            output.release()
        output.finish()
