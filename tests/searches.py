"""Searches over several answers, and what they must find: transformers' own beam search, and contrastive search
written out without a cache or a batch (transformers has none any more)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.generation.generate import Generation
from model.generation.settings import Event, Settings
from model.tokenizers.opening import open_tokenizer
from model.transformer import Transformer
from parallel import Mesh, World

if TYPE_CHECKING:
    # Ranks that are processes import this file, and transformers takes longer than their searches.
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

Prompts = Sequence[Sequence[int]]


@dataclass(slots=True)
class Found:
    """One answer, its end token left out. `score` is None where the search has none."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    score: float | None = None
    logprobs: list[float] = field(default_factory=list)


def gathered(events: Iterable[Event], answers: int) -> list[Found]:
    """The answers that events are about. Each ends once, and nothing comes behind its end."""
    found = [Found() for _ in range(answers)]
    for event in events:
        one = found[event.row]
        assert one.finish_reason is None
        if event.token is not None:
            one.tokens.append(event.token)
        if event.logprob is not None:
            one.logprobs.append(event.logprob)
        one.finish_reason = event.finish_reason
    assert all(one.finish_reason is not None for one in found)
    return found


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several would wait for each other longer than sums of a tiny model take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _uncut(folder: Path) -> Transformer:
    return load(folder, Mesh())


def load(folder: Path, mesh: Mesh) -> Transformer:
    """This rank's share of a checkpoint, in float32."""
    checkpoint = open_checkpoint(folder)
    with torch.device("meta"):
        model = Transformer(checkpoint.params, mesh, 0 if checkpoint.embedding_dim == 0 else 1)
    weights = load_weights(checkpoint, mesh.rank, mesh.size, torch.float32, torch.device("cpu"))
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def searched(folder: Path, prompts: Prompts, settings: Settings, mesh: Mesh | None = None) -> list[Found]:
    """What our search finds on a rank, the answers to each prompt one after the other. Collective."""
    model = _uncut(folder) if mesh is None or mesh.alone else load(folder, mesh)
    tokenizer = open_tokenizer(folder / "tokenizer.model") if settings.stop else None
    generation = Generation(model, prompts, settings, range(len(prompts)), tokenizer)
    found = gathered(generation.events(), len(prompts) * settings.num_return_sequences)
    for one, score in zip(found, generation.scores or [None] * len(found), strict=True):
        one.score = score
    return found


def searched_in_a_process(world: World, folder: Path, prompts: Prompts, settings: Settings) -> list[Found]:
    return searched(folder, prompts, settings, world.mesh)


def room_of(prompt: Sequence[int], settings: Settings) -> int:
    return min(settings.max_gen_len, settings.max_seq_len - len(prompt))


def greedy_by_transformers(
    model: "LlamaForCausalLM", prompt: Sequence[int], settings: Settings
) -> tuple[list[int], list[float]]:
    """New tokens of a prompt alone, without the end token, and the log-probability of each under the model itself."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=room_of(prompt, settings),
        do_sample=False,
        repetition_penalty=settings.repetition_penalty,
        eos_token_id=sorted(settings.eos_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    known = [float(logits[0].log_softmax(-1)[token]) for logits, token in zip(out.logits, tokens, strict=True)]
    ended = tokens[-1] in settings.eos_ids
    return (tokens[:-1], known[:-1]) if ended else (tokens, known)


def transformers_beams(
    model: "LlamaForCausalLM",
    prompt: Sequence[int],
    settings: Settings,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Found]:
    """What transformers finds for a prompt alone."""
    stops: dict[str, Any] = {"stop_strings": list(settings.stop), "tokenizer": tokenizer} if settings.stop else {}
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=room_of(prompt, settings),
        do_sample=False,
        num_beams=settings.num_beams,
        num_return_sequences=settings.num_return_sequences,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        repetition_penalty=settings.repetition_penalty,
        bos_token_id=None,
        eos_token_id=sorted(settings.eos_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **stops,
    )
    found = []
    for row, beams, score in zip(out.sequences, out.beam_indices, out.sequences_scores.tolist(), strict=True):
        # What stands behind an answer's end has no beam.
        tokens = row[len(prompt) :].tolist()[: int((beams >= 0).sum())]
        text = tokenizer.decode(tokens) if tokenizer is not None else ""
        ended = tokens[-1] in settings.eos_ids
        short = len(tokens) < room_of(prompt, settings)
        reason = "stop" if ended or short or any(stop in text for stop in settings.stop) else "length"
        found.append(Found(tokens[:-1] if ended else tokens, reason, score))
    return found


def plain_contrastive(model: "LlamaForCausalLM", prompt: Sequence[int], settings: Settings) -> Found:
    """Contrastive search after its paper (arXiv:2202.06417, equation 5), each candidate behind all that is there."""
    ids, found = list(prompt), Found(finish_reason="length")
    for _ in range(room_of(prompt, settings)):
        probs_V = _penalised(model(torch.tensor([ids])).logits[0, -1], ids, settings.repetition_penalty).softmax(-1)
        candidates = probs_V.topk(settings.top_k).indices.tolist()
        # The last layer's, behind the model's last norm.
        out = model(torch.tensor([[*ids, token] for token in candidates]), output_hidden_states=True)
        rated = []
        for token, hidden_TD in zip(candidates, out.hidden_states[-1], strict=True):
            likeness = torch.cosine_similarity(hidden_TD[-1:], hidden_TD[:-1]).max()
            value = (1 - settings.penalty_alpha) * probs_V[token] - settings.penalty_alpha * likeness
            rated.append((float(value), token))
        token = max(rated)[1]
        if token in settings.eos_ids:
            found.finish_reason = "stop"
            break
        ids.append(token)
        found.tokens.append(token)
    return found


def _penalised(logits_V: torch.Tensor, ids: Collection[int], penalty: float) -> torch.Tensor:
    logits_V = logits_V.clone()
    for token in set(ids):
        logits_V[token] *= penalty if logits_V[token] < 0 else 1 / penalty
    return logits_V


def require_beams(
    found: Sequence[Found], prompts: Prompts, settings: Settings, wanted: Callable[[Sequence[int]], list[Found]]
) -> None:
    """Each prompt's answers are those that it has alone; none where there is no room."""
    copies = settings.num_return_sequences
    for index, prompt in enumerate(prompts):
        own = found[index * copies : (index + 1) * copies]
        if room_of(prompt, settings) <= 0:
            assert [(one.tokens, one.finish_reason) for one in own] == [([], "length")] * copies
            continue
        expected = wanted(prompt)
        assert [(one.tokens, one.finish_reason) for one in own] == [
            (one.tokens, one.finish_reason) for one in expected
        ], (index, settings)
        # A score is a sum of up to 60 log-probabilities, each of which float32 rounds by some 1e-6 (logits up to 30,
        # summed in another order); a negative length penalty multiplies it by the length.
        scores = [one.score for one in expected]
        assert [one.score for one in own] == pytest.approx(scores, abs=1e-4, rel=1e-5), (index, settings)
