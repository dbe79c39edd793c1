"""Answers a few dialogs in Llama 2's chat format, in the shape of Meta's example of that name.

    torchrun --nproc-per-node 2 examples/chat_completion.py --ckpt_dir DIR

with any number of ranks; for one, plain `python` does.
DIR wants a chat model, such as Llama 2 7B chat: a model that was never taught the format rambles.
"""

import fire

from model import Dialog, Llama

DIALOGS: list[Dialog] = [
    [{"role": "user", "content": "What makes bread rise?"}],
    [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "Why is the sea salty?"},
    ],
    [
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "A pear."},
        {"role": "user", "content": "And one that is not green?"},
    ],
]


def main(
    ckpt_dir: str,
    tokenizer_path: str | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_seq_len: int = 512,
    max_gen_len: int | None = None,
    max_batch_size: int = 8,
) -> None:
    """Without max_gen_len an answer may take what its dialog leaves of max_seq_len."""
    llama = Llama.build(ckpt_dir, tokenizer_path, max_seq_len, max_batch_size)
    results = llama.chat_completion(DIALOGS, temperature, top_p, max_gen_len)
    if llama.world.mesh.rank == 0:
        for dialog, result in zip(DIALOGS, results, strict=True):
            for message in [*dialog, result["generation"]]:
                print(f"{message['role']}: {message['content']}")
            print("=" * 40)


if __name__ == "__main__":
    fire.Fire(main)
