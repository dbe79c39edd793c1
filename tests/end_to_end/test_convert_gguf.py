"""The real `convert` on GGUF files, and `complete` on what it wrote, against transformers on the same files."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from model.tokenizers.opening import open_tokenizer
from tests.checkpoints import VOCABULARY
from tests.end_to_end.command import assert_done, assert_refused, complete, run, snapshot
from tests.gguf_files import add_byte_pairs, add_sentencepiece, save_gguf
from tests.hugging_face import STRETCHED, save_llama
from tests.unit.model.tokenizers import tiny

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models"
PROMPTS = ["the old boat", "she wrote", ""]
NEW_TOKENS = 12


def convert(case: Path, source: str, destination: str, *flags: str) -> None:
    before = snapshot(case / source)
    outcome = run(["convert", source, destination, "--to", "meta", *flags], case)
    assert_done(outcome)
    assert snapshot(case / source) == before


def answers(case: Path, folder: str, *flags: str) -> list[dict[str, Any]]:
    """Greedy answers with the log-probabilities of prompt and continuation, in float32."""
    asked = ("--dtype", "float32", "--max_gen_len", str(NEW_TOKENS), "--max_seq_len", "64", "--logprobs", "--echo")
    outcome = run(complete(folder, "--json", *asked, *flags, prompts=json.dumps(PROMPTS)), case)
    assert_done(outcome)
    return [json.loads(line) for line in outcome.out.splitlines()]


def assert_answers_are_those_of(model: LlamaForCausalLM, found: list[dict[str, Any]], eos: int) -> None:
    """Each token is the likeliest, and its log-probability the model's (1e-4: float32, other orders of sums)."""
    assert [answer["prompt"] for answer in found] == PROMPTS
    for answer in found:
        ids = answer["prompt_tokens"] + answer["tokens"]
        with torch.no_grad():
            known = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        start = len(answer["prompt_tokens"])
        assert known[start - 1 : -1].argmax(-1).tolist() == answer["tokens"]
        stopped = len(answer["tokens"]) < NEW_TOKENS
        assert not stopped or int(known[-1].argmax()) == eos
        given = [float(known[place, token]) for place, token in enumerate(ids[1:])]
        assert answer["logprobs"][1:] == pytest.approx(given, abs=1e-4)


def read_by_transformers(path: Path) -> LlamaForCausalLM:
    """The model in a GGUF file, its sizes and weights as transformers reads them (what from_pretrained calls)."""
    config = LlamaConfig(**load_gguf_checkpoint(str(path))["config"])
    model = LlamaForCausalLM(config)
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict(found, strict=False)
    assert unknown == []
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return model.float().eval()


@pytest.mark.parametrize(
    ("kind", "mp"),
    [(Kind.F32, 2), (Kind.F16, 1), (Kind.BF16, 2), (Kind.Q8_0, 1), (Kind.Q4_0, 2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_converted_file_answers_as_transformers_does_on_the_file(
    kind: Kind, mp: int, case: Path, tokenizer: bytes
) -> None:
    (case / "truth.model").write_bytes(tokenizer)
    model = save_llama(
        case / "hf", vocab_size=VOCABULARY, num_key_value_heads=2, intermediate_size=64, tie_word_embeddings=mp == 2
    )
    path = save_gguf(case / "x.gguf", model, kind, lambda writer: add_sentencepiece(writer, case / "truth.model"))
    convert(case, "x.gguf", "meta", "--mp", str(mp))
    truth = open_tokenizer(case / "truth.model")
    found = answers(case, "meta", "--nproc_per_node", str(mp))
    assert [answer["prompt_tokens"] for answer in found] == [
        truth.encode(text, bos=True, eos=False) for text in PROMPTS
    ]
    assert_answers_are_those_of(read_by_transformers(path), found, truth.eos_id)


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K], ids=lambda kind: kind.name)
def test_blocks_that_no_package_here_can_make_are_decoded_as_transformers_does(
    kind: Kind, case: Path, tokenizer: bytes
) -> None:
    (case / "truth.model").write_bytes(tokenizer)
    model = save_llama(case / "hf", vocab_size=VOCABULARY, hidden_size=256, intermediate_size=256)
    path = save_gguf(case / "x.gguf", model, kind, lambda writer: add_sentencepiece(writer, case / "truth.model"))
    convert(case, "x.gguf", "meta")
    assert_answers_are_those_of(read_by_transformers(path), answers(case, "meta"), 2)


def test_scaled_frequencies_and_llama_3s_tokenizer_come_along(case: Path) -> None:
    """Against the model that the file was made of: transformers does not read the scaling from GGUF."""
    ranks = tiny.train_ranks()
    stretched = {**STRETCHED, "factor": 32.0, "rope_theta": 10000.0}
    model = save_llama(
        case / "hf",
        vocab_size=len(ranks) + 256,
        hidden_size=128,
        rope_parameters=stretched,
        max_position_embeddings=65536,
        tie_word_embeddings=True,
    )
    content = tiny.llama3_json(ranks)
    save_gguf(case / "x.gguf", model, Kind.F32, lambda writer: add_byte_pairs(writer, content))
    convert(case, "x.gguf", "meta", "--mp", "2")
    assert (case / "meta" / "tokenizer.model").read_bytes() == b"".join(tiny.tiktoken_lines(ranks))
    params = json.loads((case / "meta" / "params.json").read_text())
    assert (params["use_scaled_rope"], params["rope_scaling_factor"]) == (True, 32)
    shard = torch.load(case / "meta" / "consolidated.00.pth", weights_only=True)
    assert shard["tok_embeddings.weight"].shape == ((len(ranks) + 256) // 2, 128)
    assert_answers_are_those_of(model, answers(case, "meta"), len(ranks) + 1)


@pytest.mark.skipif(not STORIES.exists(), reason="needs the trained models, which are not part of the project")
def test_a_trained_model_tells_its_story(case: Path) -> None:
    source = STORIES / "stories260K"
    weights = torch.load(source / "consolidated.00.pth", weights_only=True)
    model = save_llama(
        case / "hf",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    names = {
        f"blk.{layer}.{theirs}.weight": f"layers.{layer}.{ours}.weight"
        for layer in range(5)
        for theirs, ours in (
            ("attn_q", "attention.wq"),
            ("attn_k", "attention.wk"),
            ("attn_v", "attention.wv"),
            ("attn_output", "attention.wo"),
            ("ffn_gate", "feed_forward.w1"),
            ("ffn_down", "feed_forward.w2"),
            ("ffn_up", "feed_forward.w3"),
            ("attn_norm", "attention_norm"),
            ("ffn_norm", "ffn_norm"),
        )
    }
    names |= {"token_embd.weight": "tok_embeddings.weight", "output_norm.weight": "norm.weight"}
    names |= {"output.weight": "output.weight"}
    tensors = {theirs: weights[ours].float().numpy() for theirs, ours in names.items()}
    save_gguf(
        case / "x.gguf",
        model,
        change=lambda writer: add_sentencepiece(writer, source / "tokenizer.model"),
        tensors=tensors,
    )
    convert(case, "x.gguf", "meta")
    golden = json.loads((STORIES / "golden_greedy.json").read_text())["stories260K"]
    flags = ("--max_seq_len", "256", "--max_gen_len", "40", "--dtype", "float32", "--eos_ids", "[1]", "--json")
    outcome = run(complete("meta", *flags, prompts=json.dumps([one["prompt"] for one in golden])), case)
    assert_done(outcome)
    for one, line in zip(golden, outcome.out.splitlines(), strict=True):
        answer = json.loads(line)
        assert answer["prompt_tokens"] == one["prompt_ids"]
        assert answer["tokens"] == one["greedy_ids"][:40]


def test_a_file_of_another_model_is_refused_and_nothing_is_written(case: Path) -> None:
    writer = gguf.GGUFWriter(case / "x.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    outcome = run(["convert", "x.gguf", "meta", "--to", "meta"], case)
    assert_refused(outcome, ['x.gguf: general.architecture is "qwen2"; wanted "llama"'])
    assert not (case / "meta").exists()


def test_a_hugging_face_folder_is_written_that_transformers_opens(case: Path, tokenizer: bytes) -> None:
    (case / "truth.model").write_bytes(tokenizer)
    model = save_llama(case / "hf", vocab_size=VOCABULARY, num_key_value_heads=2, intermediate_size=64)

    def change(writer: gguf.GGUFWriter) -> None:
        add_sentencepiece(writer, case / "truth.model")
        writer.add_chat_template("{{ messages }}")

    path = save_gguf(case / "x.gguf", model, Kind.Q8_0, change)
    assert_done(run(["convert", "x.gguf", "new", "--to", "hf"], case), ["its Q8_0 weights become float32"])
    truth = read_by_transformers(path).state_dict()
    found = AutoModelForCausalLM.from_pretrained(case / "new").state_dict()
    assert truth.keys() == found.keys()
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    assert (case / "new" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (case / "tmp").is_dir() and not list((case / "tmp").iterdir())
