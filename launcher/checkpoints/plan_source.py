"""What `plan` knows of a model: a checkpoint's headers, or the sizes of one that is not there. No torch."""

from dataclasses import dataclass, field
from pathlib import Path

from launcher.settings.options import PlanOptions
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.files import DTYPE_BYTES, reading
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.params_json import read_params
from model.hugging_face.config import CONFIG, read_config
from model.params import LLAMA_3_VOCABULARY, Params
from parallel.errors import RefusedError

_PARAMS = "params.json"
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".gguf")
_USUAL_VOCABULARY = 32000
_USUAL_DTYPE = "bfloat16"
# The rotary base that came with Llama 3's vocabulary.
_LLAMA_3_THETA = 500000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model to plan for. `shards`: the MP that its files are cut for, None where they are not cut."""

    path: Path
    params: Params
    embedding_dim: int
    stored: str
    shards: int | None = None
    checkpoint: Checkpoint | None = None
    assumed: list[str] = field(default_factory=list)


def read_source(path: Path, options: PlanOptions) -> Source:
    """Read a checkpoint folder's headers, or a params.json or config.json alone. RefusedError says what is wrong."""
    with reading(path):
        return _read_source(path, options)


def _read_source(path: Path, options: PlanOptions) -> Source:
    if path.is_dir():
        if _holds_weights(path):
            return _from_checkpoint(path, options)
        for name in (_PARAMS, CONFIG):
            if (path / name).exists():
                return _from_sizes(path / name, options)
        return _from_checkpoint(path, options)  # refuses, and says what is in the folder
    if path.suffix == ".json":
        return _from_sizes(path, options)
    if path.suffix == ".gguf":
        return _from_checkpoint(path, options)
    if not path.exists():
        raise RefusedError(f"{path}: does not exist; wanted a checkpoint folder, or a {_PARAMS}")
    raise RefusedError(f"{path}: is neither a folder nor a .json file; wanted a checkpoint folder, or a {_PARAMS}")


def _holds_weights(folder: Path) -> bool:
    try:
        return any(entry.name.endswith(_WEIGHTS) for entry in folder.iterdir())
    except OSError:
        return True  # the checkpoint's reader says what is wrong


def _from_checkpoint(folder: Path, options: PlanOptions) -> Source:
    checkpoint = open_checkpoint(folder, options.allow_legacy)
    vocabulary = checkpoint.params.vocab_size
    if options.vocab_size not in (None, vocabulary):
        raise RefusedError(
            f"--vocab_size is {options.vocab_size}, but the files of {folder} have {vocabulary} entries; leave it out"
        )
    return Source(
        path=folder,
        params=checkpoint.params,
        embedding_dim=checkpoint.embedding_dim,
        stored=checkpoint.dtype,
        shards=checkpoint.mp if checkpoint.layout == "meta" else None,
        checkpoint=checkpoint,
        assumed=list(checkpoint.notes),
    )


def _from_sizes(path: Path, options: PlanOptions) -> Source:
    """From sizes alone, and what is assumed of the files."""
    assumed: list[str] = []
    params, dtype = (read_params(path), None) if path.name != CONFIG else _config(path)
    params = _with_vocabulary(params, options.vocab_size, assumed)
    stored = _stored(dtype, options.dtype, assumed)
    embedding_dim = 0 if params.vocab_size == LLAMA_3_VOCABULARY else 1
    cut = "the vocabulary, as in Llama 3" if embedding_dim == 0 else "the width, as in Llama 1 and 2"
    assumed.append(f"the embedding is cut along {cut}")
    assumed.append("files are cut for as many ranks as are planned (files of another MP are read besides)")
    return Source(path=path, params=params, embedding_dim=embedding_dim, stored=stored, assumed=assumed)


def _stored(dtype: str | None, asked: str, assumed: list[str]) -> str:
    """The dtype of files that are not there; `dtype`: what config.json says."""
    if asked != "auto":
        assumed.append(f"files in {asked}, as --dtype")
        return asked
    if dtype in DTYPE_BYTES:
        return str(dtype)
    assumed.append(f"files in {_USUAL_DTYPE}, as most are published (--dtype)")
    return _USUAL_DTYPE


def _config(path: Path) -> tuple[Params, str | None]:
    config = read_config(path)
    return config.params, config.dtype


def _with_vocabulary(params: Params, asked: int | None, assumed: list[str]) -> Params:
    if asked is not None:
        if params.vocab_size not in (-1, asked):
            assumed.append(f"vocabulary {asked}, as --vocab_size; the file says {params.vocab_size}")
        return params.with_vocab_size(asked)
    if params.vocab_size != -1:
        return params
    given = params.rope_given
    like_llama_3 = given is not None and (given.scaled or given.theta == _LLAMA_3_THETA)
    vocabulary = LLAMA_3_VOCABULARY if like_llama_3 else _USUAL_VOCABULARY
    why = "its rotary base is Llama 3's" if like_llama_3 else "Llama 1's and 2's"
    assumed.append(f"vocabulary {vocabulary}: the file leaves it to the tokenizer; {why} (--vocab_size)")
    return params.with_vocab_size(vocabulary)
