"""Train the demo checkpoint with this project's own parallel layers, on two ranks.

    torchrun --standalone --nproc-per-node 2 scripts/train_demo.py --text stories.txt.gz --out configs/demo

Stories stand one a paragraph, an empty line between them. A run that was stopped goes on where it was
(`--work` holds its state). Needs the `train` extra (matplotlib, for the loss curve).
"""

import gzip
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fire
import sentencepiece
import torch
from torch import Tensor, nn

from model.checkpoint.manifest import MANIFEST, manifest_text
from model.checkpoint.params_json import read_params
from model.checkpoint.shard_writer import planned, write_shard
from model.checkpoint.torch_file import read_header
from model.cuts import all_weights
from model.params import Params
from model.split import split_of
from model.transformer import Transformer
from parallel import RefusedError, World, start_world, vocab_parallel_cross_entropy
from parallel.collectives import all_reduce
from parallel.seed import seed_everything

PARAMS = {
    "dim": 128,
    "n_layers": 7,
    "n_heads": 8,
    "n_kv_heads": 4,
    "vocab_size": 2048,
    "multiple_of": 64,
    "norm_eps": 1e-05,
}
HELD_OUT_STORIES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What decides the result, but for the text."""

    steps: int
    rows: int = 24
    row_tokens: int = 320
    peak_lr: float = 3e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 1

    @property
    def warmup_steps(self) -> int:
        return max(1, min(150, self.steps // 10))

    def lr(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero."""
        rise = (step + 1) / self.warmup_steps
        fall = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.peak_lr * min(1.0, rise, fall)


def read_stories(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    return [story.strip() for story in text.split("\n\n") if story.strip()]


def train_tokenizer(stories: list[str], path: Path) -> None:
    """A SentencePiece BPE like Llama's: unk 0, bos 1, eos 2, bytes for what it does not know."""
    model = io.BytesIO()  # not a file: SentencePiece would write its path into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for story in stories for line in story.split("\n")),
        model_writer=model,
        vocab_size=PARAMS["vocab_size"],
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        pad_id=-1,
        minloglevel=2,
    )
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.getvalue())
    os.replace(partial, path)


def encode(stories: list[str], tokenizer: Path) -> Tensor:
    """All stories, each as bos, text, eos, one behind the other."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    ids = pieces.encode(stories, add_bos=True, add_eos=True, num_threads=2)
    return torch.tensor([token for story in ids for token in story], dtype=torch.int32)


def batches(ids: Tensor, recipe: Recipe, first_step: int) -> Iterator[Tensor]:
    """Rows of row_tokens + 1 ids, in a new order each pass; the same on every rank."""
    width = recipe.row_tokens
    step = 0
    for epoch in range(10**6):
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
        shift = int(torch.randint(width, (1,), generator=generator))
        starts = torch.arange(shift, len(ids) - width - 1, width)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for chosen in starts.split(recipe.rows):
            if len(chosen) == recipe.rows:
                if step >= first_step:
                    yield torch.stack([ids[start : start + width + 1] for start in chosen.tolist()]).long()
                step += 1


def loss_of(model: Transformer, rows: Tensor) -> Tensor:
    """Mean nats a token. Collective."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(rows[:, :-1])
        logits = model.local_logits(hidden)
    return vocab_parallel_cross_entropy(logits, rows[:, 1:], mesh=model.mesh, shares=model.vocabulary).mean()


@torch.no_grad()
def held_out_loss(model: Transformer, ids: Tensor, recipe: Recipe) -> float:
    rows = ids[: (len(ids) - 1) // recipe.row_tokens * recipe.row_tokens + 1]
    rows = rows.unfold(0, recipe.row_tokens + 1, recipe.row_tokens).long()
    losses = [loss_of(model, part) * len(part) for part in rows.split(recipe.rows)]
    return float(sum(losses) / len(rows))


def clip_gradients(model: nn.Module, world: World, limit: float) -> float:
    """Scale all gradients so that their norm over the uncut model is at most `limit`. Collective."""
    squares = {True: torch.zeros(()), False: torch.zeros(())}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        squares["norm" in name] += parameter.grad.square().sum()
    # Norm weights are whole on every rank and have the same gradient there; the rest is cut.
    norm = float((squares[True] + all_reduce(squares[False], world.mesh)).sqrt())
    if norm > limit:
        for parameter in model.parameters():
            parameter.grad.mul_(limit / norm)  # type: ignore[union-attr]
    return norm


def new_model(params: Params, world: World, seed: int) -> Transformer:
    seed_everything(seed)
    if world.mesh.size > params.n_kv_heads:
        # The gradients of a KV head that stands on several ranks are not added up.
        raise RefusedError(f"{world.mesh.size} ranks cannot train {params.n_kv_heads} KV heads; start as many or fewer")
    model = Transformer(params, world.mesh, embedding_dim=1)
    with torch.no_grad():
        for block in model.layers:
            for weight in (block.attention.wo.weight, block.feed_forward.w2.weight):  # type: ignore[union-attr]
                weight.mul_(1 / math.sqrt(2 * params.n_layers))  # type: ignore[operator]
    return model


def save_state(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def plot(log: list[dict[str, float]], path: Path) -> None:
    try:
        import matplotlib  # heavy, and only wanted here
    except ImportError:
        print("no loss curve: matplotlib is not installed (pip install '.[train]')", file=sys.stderr)
        return

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), dpi=100)
    axes.plot([row["step"] for row in log], [row["loss"] for row in log], lw=0.7, label="training")
    held = [row for row in log if "held_out" in row]
    axes.plot([row["step"] for row in held], [row["held_out"] for row in held], "o-", ms=3, label="held out")
    axes.set(xlabel="step", ylabel="loss (nats a token)", ylim=(min(row["loss"] for row in log) - 0.1, 4))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def train(text: str, out: str, work: str = "train_demo_work", steps: int = 4000) -> None:
    world = start_world(device="cpu", settings={"text": text, "steps": steps})
    recipe = Recipe(steps=steps)
    work_dir, out_dir, first_rank = Path(work), Path(out), world.env.rank == 0
    tokenizer, params_file = out_dir / "tokenizer.model", out_dir / "params.json"
    stories = read_stories(Path(text))

    def prepare() -> None:
        if first_rank:
            work_dir.mkdir(parents=True, exist_ok=True)
            out_dir.mkdir(parents=True, exist_ok=True)
            params_file.write_text(json.dumps(PARAMS) + "\n")
            if not tokenizer.exists():
                train_tokenizer(stories[HELD_OUT_STORIES:], tokenizer)

    world.together("training the tokenizer", prepare)
    held_ids = encode(stories[:HELD_OUT_STORIES], tokenizer)
    ids = encode(stories[HELD_OUT_STORIES:], tokenizer)
    model = new_model(read_params(params_file), world, recipe.seed)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    log: list[dict[str, float]] = []
    state_file = work_dir / f"state.{world.env.rank}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
    world.agree("the step to go on from", {"step": len(log)})
    if first_rank:
        print(f"{len(ids)} tokens, {len(held_ids)} held out; from step {len(log)} of {steps}", file=sys.stderr)

    started = time.monotonic()
    for step, rows in zip(range(len(log), steps), batches(ids, recipe, len(log)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr(step)
        loss = loss_of(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(model, world, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        log.append({"step": step + 1, "loss": round(loss.item(), 4)})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log[-1]["held_out"] = round(held_out_loss(model, held_ids, recipe), 4)
            world.together(
                "saving",
                lambda: save_state(
                    state_file, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
                ),
            )
        if first_rank and (step + 1) % 20 == 0:
            print(
                f"step {step + 1}/{steps} loss {log[-1]['loss']:.3f} norm {norm:.2f} "
                f"held out {log[-1].get('held_out', '-')} {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    own_shard = out_dir / f"consolidated.{world.env.rank:02d}.pth"
    world.together("writing the shard", lambda: write_shard(own_shard, planned(weights)))
    if first_rank:
        headers = [read_header(out_dir / f"consolidated.{rank:02d}.pth") for rank in range(world.env.world_size)]
        (out_dir / MANIFEST).write_text(
            manifest_text(headers, all_weights(model.params, 1), split_of(model.params, world.mesh.size))
        )
        (work_dir / "log.json").write_text(json.dumps(log))
        plot(log, out_dir / "loss.png")
    world.together("finishing", lambda: None)
    world.close()


if __name__ == "__main__":
    fire.Fire(train)
