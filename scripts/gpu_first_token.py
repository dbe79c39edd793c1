"""Seconds from loaded weights to the first token, and to the fifth, in a fresh process. See bench_gpu.py.

    .venv/bin/python scripts/gpu_first_token.py PARAMS_JSON none|int8|int4

What is compiled on the way counts. The fifth token has seen an ordinary step, a capture, and replays.
"""

import json
import sys
import time
from pathlib import Path

import torch

from model.capturing import make_step
from model.checkpoint.params_json import read_params
from model.random_weights import random_model
from parallel import Mesh
from parallel.kernels.formats import Quantisation

_PROMPT_TOKENS, _PLACES = 128, 256


@torch.inference_mode()
def main(params_file: str, quantize: Quantisation) -> None:
    params = read_params(Path(params_file))
    params = params if params.vocab_size > 0 else params.with_vocab_size(32000)
    model = random_model(params, 1, Mesh(), torch.bfloat16, torch.device("cuda"), quantize)
    torch.cuda.synchronize()
    started = time.perf_counter()
    cache = model.new_cache(1, _PLACES)
    hidden = model(torch.zeros(1, _PROMPT_TOKENS, dtype=torch.long, device="cuda"), cache)
    cache.advance([_PROMPT_TOKENS])
    token = int(model.logits(hidden[:, -1]).argmax(-1))
    first_s = time.perf_counter() - started
    step = make_step(model, cache)
    for _ in range(4):
        hidden = step(torch.tensor([[token]], device="cuda"))
        cache.advance([1])
        token = int(model.logits(hidden[:, 0]).argmax(-1))
    print(json.dumps({"first_token_s": first_s, "fifth_token_s": time.perf_counter() - started}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]
