"""The `verify` command: the same prompts at several MP sizes, each with ranks of its own."""

import json
import os
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from launcher.checkpoints.verification import Greedy, Verification, as_text, compare
from launcher.console import print_result, say
from launcher.generating.asked import named_file
from launcher.generating.preflight import Ready, preflight
from launcher.ranks.forwarding import to_terminal
from launcher.ranks.report import OUR_FAULT, SIGNALLED
from launcher.ranks.supervisor import Run, supervise
from launcher.settings.flags import convert_flags, run_options
from launcher.settings.options import ParallelSection, VerifyOptions
from launcher.settings.schema import settings_of
from model.generation.stopping import answer_text
from model.tokenizers.base import Tokenizer
from parallel.environment import Environment
from parallel.errors import RefusedError

# Of several lengths and kinds; any Llama has something to say to them.
PROMPTS = [
    "",
    "Once upon a time",
    "The sum of 12 and 30 is",
    "def largest(numbers):\n    return",
    "Sugar, flour, butter and eggs: with these you can",
    "Am Morgen ging der Bauer auf das Feld, und",
    "Question: Why does ice float on water?\nAnswer:",
    "It had rained all night. When the two brothers opened the door in the morning, the path to the village was gone "
    "and in its place there was",
]
# Likeliest tokens that each size tells of, for the lead of one choice over another.
_LIKELIEST = 5


def verify_command(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Sequence[str]) -> int:
    """Run `verify CKPT_DIR --mp 1,2,4`; the exit code."""
    options = VerifyOptions(**convert_flags("verify", settings_of(VerifyOptions), flags))
    if len(words) != 1:
        extra = f"; unexpected '{words[1]}' (sizes are written --mp 1,2)" if len(words) > 1 else ""
        raise RefusedError(f"verify wants one folder, as verify CKPT_DIR --mp 1,2{extra}")
    if env.launched:
        raise RefusedError("verify starts the ranks of each size itself; start it without torchrun")
    _check_sizes(options.mp)
    ready, *_ = [_look(words[0], options, mp) for mp in options.mp]
    _note_cores(options)
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="shardrun-verify-") as folder:
        outputs = {mp: Path(folder) / f"mp{mp}.jsonl" for mp in options.mp}
        for mp, output in outputs.items():
            say(f"MP {mp}: {len(ready.requests)} prompts (size {len(seconds) + 1} of {len(outputs)})")
            started = time.monotonic()
            if code := _run(_arguments_of(words[0], options, output), mp):
                return code
            seconds[mp] = round(time.monotonic() - started, 3)
        answers = {mp: read_answers(output, ready.tokenizer.stop_ids) for mp, output in outputs.items()}
    found = verification_of(words[0], options, seconds, answers, ready.tokenizer)
    print_result(json.dumps(found.as_json()) + "\n" if options.json else as_text(found))
    return OUR_FAULT if options.exact and not found.agree else 0


def _check_sizes(sizes: Sequence[int]) -> None:
    for index, mp in enumerate(sizes):
        if mp < 1:
            raise RefusedError(f"--mp holds {mp}; wanted sizes of 1 or more, as --mp 1,2,4")
        if mp in sizes[:index]:
            raise RefusedError(f"--mp holds {mp} twice; give each size once, as --mp 1,2,4")
    if len(sizes) < 2:
        raise RefusedError(f"--mp holds {len(sizes)} size{'s' * (len(sizes) != 1)}; wanted two or more, as --mp 1,2,4")


def _look(ckpt_dir: str, options: VerifyOptions, mp: int) -> Ready:
    """See, before any rank is started, that this size can be run. RefusedError says why not, and which can."""
    arguments = _arguments_of(ckpt_dir, options, None)[1:]
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    return preflight(run_options("complete", flags), mp)


def _arguments_of(ckpt_dir: str, options: VerifyOptions, output: Path | None) -> list[str]:
    """What each rank of a size is started with."""
    prompts = PROMPTS if options.prompts is None else options.prompts
    from_file = named_file(prompts) is not None
    flags = {
        "ckpt_dir": ckpt_dir,
        "prompts": prompts[0] if from_file else json.dumps(prompts),
        "temperature": 0,
        "logprobs": "true",
        "top_logprobs": _LIKELIEST,
        # What comes behind an end token is cut off later; so the end itself has its log-probabilities.
        "eos_ids": "[]",
        "exact": str(options.exact).lower(),
        "allow_legacy": str(options.allow_legacy).lower(),
    }
    same = (
        *("max_gen_len", "max_seq_len", "max_batch_size", "dtype", "quantize", "backend", "device", "timeout_s"),
        "tokenizer_path",
    )
    flags |= {name: value for name in same if (value := getattr(options, name)) is not None}
    if output is not None:
        flags["output"] = str(output)
    return ["complete", *(f"--{name}={value}" for name, value in flags.items())]


def _note_cores(options: VerifyOptions) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if max(options.mp) > cores and options.device != "cuda":
        say(f"note: MP {max(options.mp)} on a CPU with {cores} core{'s' * (cores > 1)}: ranks wait for each other")


class _Held:
    """Lines that are kept back, in case the run fails; what tells of progress goes on to the terminal."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def take(self, line: bytes) -> None:
        if line.endswith(b" s left\n"):
            to_terminal(line)
        else:
            self.lines.append(line)


def _run(arguments: Sequence[str], mp: int) -> int:
    """Run one size; the exit code. What its ranks say is shown where they fail."""
    held = _Held()
    code = supervise(Run(arguments=arguments, ranks=mp, run_id="", parallel=ParallelSection(), show=held.take))
    # Where a signal stopped it, there is nothing that the lines would explain.
    if code and code <= SIGNALLED:
        for line in held.lines:
            to_terminal(line)
    return code


def read_answers(path: Path, end_ids: Collection[int]) -> list[Greedy]:
    """The answers of a file that `complete` wrote, each up to its end token where one came."""
    with path.open(encoding="utf-8") as lines:
        return [Greedy.of(json.loads(line), end_ids) for line in lines]


def verification_of(
    ckpt_dir: str,
    options: VerifyOptions,
    seconds: dict[int, float],
    answers: Mapping[int, Sequence[Greedy]],
    tokenizer: Tokenizer,
) -> Verification:
    """Compare each size's answers with the first size's."""

    def text_of(before: Sequence[int], token: int) -> str:
        return answer_text(tokenizer, [token], context=before)

    first, *others = options.mp
    compared = [compare(first, answers[first], mp, answers[mp], text_of) for mp in others]
    agree = all(one.agree for one in compared)
    if options.exact:
        agree = agree and all(one.largest_logprob_difference == 0 for one in compared)
    return Verification(
        checkpoint=ckpt_dir,
        agree=agree,
        exact=options.exact,
        dtype=options.dtype,
        reference_mp=first,
        prompts=len(answers[first]),
        tokens=sum(len(answer.tokens) for answer in answers[first]),
        seconds=seconds,
        compared=compared,
    )
