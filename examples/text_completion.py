"""Continues a few texts, in the shape of Meta's example of that name.

    torchrun --nproc-per-node 2 examples/text_completion.py --ckpt_dir DIR

with any number of ranks; for one, plain `python` does.
Every rank calls the model, with the same arguments; the first one prints.
"""

import fire

from model import Llama

PROMPTS = [
    "The old lighthouse keeper climbed the stairs and",
    "Once upon a time, a small fox",
    # A few examples in the prompt show what is wanted.
    "cold => warm\ndark => light\nslow => fast\nnear =>",
]


def main(
    ckpt_dir: str,
    tokenizer_path: str | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_seq_len: int = 128,
    max_gen_len: int = 64,
    max_batch_size: int = 4,
) -> None:
    """Temperature 0 takes the likeliest token; max_seq_len bounds prompt and answer together."""
    llama = Llama.build(ckpt_dir, tokenizer_path, max_seq_len, max_batch_size)
    results = llama.text_completion(PROMPTS, temperature, top_p, max_gen_len)
    if llama.world.mesh.rank == 0:
        for prompt, result in zip(PROMPTS, results, strict=True):
            print(f"{prompt}\n> {result['generation']}\n{'=' * 40}")


if __name__ == "__main__":
    fire.Fire(main)
