"""Stop strings: what ends an answer by its text, and how tokens become text that never has to be taken back.

An answer ends as soon as any stop string is complete in its text, and is cut before it. Where several become
complete with the same character, the cut is before the one that begins first. A longer stop string that
began earlier but is not complete by then counts for nothing. So the result depends on the text alone, and not on the
pieces in which it came.
"""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from model.tokenizers.base import TextStream, Tokenizer, check_text
from parallel.errors import RefusedError

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256
_SHOWN_CHARACTERS = 40


def check_stops(stops: object) -> tuple[str, ...]:
    """The stop strings; RefusedError says which one cannot be one, and why."""
    if not isinstance(stops, list | tuple):
        raise RefusedError(f'stop is {_shown(stops)}; wanted a list of texts, as ["\\n\\n", "User:"]')
    if len(stops) > MAX_STOPS:
        raise RefusedError(f"stop holds {len(stops)} strings; wanted at most {MAX_STOPS}: leave some out")
    for index, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise RefusedError(f"stop string {index} is {_shown(stop)}; wanted a text")
        if not stop:
            raise RefusedError(f"stop string {index} is empty, and would end every answer at once; leave it out")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise RefusedError(
                f"stop string {index} ({_shown(stop)}) has {len(stop)} characters; wanted at most "
                f"{MAX_STOP_CHARACTERS}: the beginning of it will do"
            )
        try:
            check_text(stop)
        except RefusedError as error:
            raise RefusedError(f"stop string {index}: {error}") from None
    return tuple(stops)


def _shown(value: object) -> str:
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value)
    return text if len(text) <= 2 * _SHOWN_CHARACTERS else text[: 2 * _SHOWN_CHARACTERS] + "..."


class StopMatcher:
    """Text in, text out up to the first stop string. `stops` are checked (`check_stops`).

    Held back is only the longest end of the text that a stop string begins with.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._machine = _machine_of(tuple(stops))
        self._state = 0
        # Its last characters are those of the state.
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is safe to give out now; empty once a stop string has come."""
        if self.stopped:
            return ""
        machine, state = self._machine, self._state
        before = len(self._held)
        self._held += text
        for end, letter in enumerate(text, before + 1):
            state = machine.step(state, letter)
            if machine.complete[state]:
                self.stopped = True
                return self._give(end - machine.complete[state])
        self._state = state
        return self._give(len(self._held) - machine.length[state])

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        self._state = 0
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given


class _Machine:
    """All stop strings at once: Aho and Corasick's machine (Communications of the ACM 18, 1975).

    A state is the longest end of the text that a stop string begins with; state 0 is none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        # By state: its characters, and those of the longest stop string that it ends in, 0 where there is none.
        self.length = [0]
        self.complete = [0]
        self._longer: list[dict[str, int]] = [{}]
        # The longest end of a state that is a state too.
        self._shorter = [0]
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, letter: str) -> int:
        """The state behind one more letter; on average over a text, few steps down."""
        while state and letter not in self._longer[state]:
            state = self._shorter[state]
        return self._longer[state].get(letter, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for length, letter in enumerate(stop, 1):
            if letter not in self._longer[state]:
                self._longer[state][letter] = len(self._longer)
                self._longer.append({})
                self._shorter.append(0)
                self.length.append(length)
                self.complete.append(0)
            state = self._longer[state][letter]
        self.complete[state] = len(stop)

    def _link(self) -> None:
        """Find the shorter state of each; those of fewer letters first, on which the longer ones' rest."""
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for letter, longer in self._longer[state].items():
                shorter = self.step(self._shorter[state], letter) if state else 0
                self._shorter[longer] = shorter
                self.complete[longer] = self.complete[longer] or self.complete[shorter]
                queue.append(longer)


@lru_cache(maxsize=8)
def _machine_of(stops: tuple[str, ...]) -> _Machine:
    """Kept, because every answer of a run has the same stop strings."""
    return _Machine(stops)


class AnswerStream:
    """Tokens of one answer in, its text out: all pieces together are the text that is returned at the end.

    Alone, that is `decode` of the tokens up to the first stop string. Behind `context`, what the tokens add to
    the text of those. Behind `after` (a prompt that is shown too), the same as alone, with what parts it
    from the prompt in front: `lead`, which no stop string is looked for in.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        context: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> None:
        assert not (context and after)
        self.lead = ""
        self._text = TextStream(tokenizer, context)
        self._stops = StopMatcher(stops)
        # None once the lead was given out.
        self._finding = _Lead(tokenizer, after) if after else None
        self._given: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; it may be `finish` that brings its last character."""
        return self._stops.stopped

    @property
    def text(self) -> str:
        """All that was given out so far, `lead` included."""
        return "".join(self._given)

    def push(self, token: int) -> str:
        """The text that may be given out now; empty once a stop string has come."""
        if self.stopped:
            return ""
        return self._give(self._find_lead(token) + self._stops.push(self._text.push(token)))

    def finish(self) -> str:
        """What was held back: the beginning of a stop string, or of a character."""
        if self.stopped:
            return ""
        text = self._take_lead() + self._stops.push(self._text.finish())
        return self._give(text + self._stops.finish())

    def _find_lead(self, token: int) -> str:
        """The lead, with the token that tells it."""
        if self._finding is None:
            return ""
        self._finding.push(token)
        return self._take_lead() if self._finding.known else ""

    def _take_lead(self) -> str:
        if self._finding is not None:
            self.lead, self._finding = self._finding.text, None
            return self.lead
        return ""

    def _give(self, text: str) -> str:
        self._given.append(text)
        return text


def answer_text(
    tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str] = (), context: Sequence[int] = ()
) -> str:
    """What an `AnswerStream` gives out of all these tokens."""
    text = tokenizer.decode([*context, *tokens])[len(tokenizer.decode(context)) :]
    matcher = StopMatcher(stops)
    return matcher.push(text) + matcher.finish()


def lead_of(tokenizer: Tokenizer, prompt_tokens: Sequence[int], tokens: Sequence[int]) -> str:
    """What stands between the text of a prompt and `decode(tokens)` in the text of both: a space, mostly, or nothing.

    SentencePiece drops the space that a text begins with, which is one of the answer's unless a prompt stands before.
    """
    lead = _Lead(tokenizer, prompt_tokens)
    for token in tokens:
        lead.push(token)
        if lead.known:
            break
    return lead.text


class _Lead:
    """`lead_of`, token by token. Looks no further than to the first token that has a text alone."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int]) -> None:
        self.text = ""
        self.known = False
        self._tokenizer = tokenizer
        self._behind = TextStream(tokenizer, prompt_tokens)
        self._added = ""
        self._ids: list[int] = []

    def push(self, token: int) -> None:
        self._ids.append(token)
        self._added += self._behind.push(token) + self._behind.finish()
        alone = self._tokenizer.decode(self._ids)
        # A prompt that ends within a character may change what follows: then there is no lead.
        lead = self._added.removesuffix(alone)
        self.text = "" if lead.strip(" ") else lead
        self.known = alone != ""
