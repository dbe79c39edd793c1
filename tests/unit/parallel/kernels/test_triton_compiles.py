"""What the compiler makes of the Triton kernels for a Hopper GPU. It needs no GPU, but seconds for each."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.drill

# In a process of its own: here Triton may be the interpreter.
COMPILE = """
import json, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from parallel.kernels import triton_products, triton_steps

kernel, types, constants, warps, file = json.loads(sys.argv[1])
function = getattr(triton_products if kernel == "_multiply" else triton_steps, kernel)
signature = types | dict.fromkeys(constants, "constexpr")
aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(function.arg_names) if name in types}
source = ASTSource(function, signature, constants, aligned)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
Path(file).write_bytes(made.asm["cubin"])
tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
used = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
loop = made.asm["ttgir"].partition("scf.for" if kernel == "_multiply" else "scf.while")[2].partition("scf.yield")[0]
print(json.dumps({"ptx": made.asm["ptx"], "used": used, "exchanges": loop.count("convert_layout")}))
"""


def compiled(kernel: str, types: dict[str, str], constants: dict[str, int], warps: int, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    task = json.dumps([kernel, types, constants, warps, str(folder / "kernel.cubin")])
    command = [sys.executable, "-c", COMPILE, task]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
def test_products_read_weights_in_vectors_and_keep_all_else_in_registers(
    kind: str, gated: int, rows: int, tmp_path: Path
) -> None:
    numbers, scales, columns, lanes = {
        "plain": ("*bf16", "*bf16", 4, 128),
        "int8": ("*i8", "*fp32", 4, 256),
        "int4": ("*u8", "*i32", 2, 128),
    }[kind]
    types = {"x": "*bf16", "y": "*bf16", "numbers": numbers, "scales": scales}
    types |= {"more_numbers": numbers, "more_scales": scales, "out": "i32", "stride": "i32"}
    constants = {"WIDTH": 4096, "ROWS": rows, "KIND": ["plain", "int8", "int4"].index(kind), "GATED": gated}
    constants |= {"COLUMNS": min(columns, 2) if gated else columns, "LANE": 8, "LANES": lanes}
    found = compiled("_multiply", types, constants, 4, tmp_path)
    # Eight numbers at once: 16 bytes of bfloat16, 8 of whole numbers. What is read once does not push out what is read
    # again.
    vector = "v4.b32" if kind == "plain" else "v2.b32"
    assert re.search(rf"ld\.global\S*evict_first\S*\.{vector}", found["ptx"])
    assert "STACK:0 " in found["used"], found["used"]
    # Between the threads of a program nothing passes inside the loop, but int4's steps and offsets.
    assert found["exchanges"] <= (2 * (1 + gated) if kind == "int4" else 0)


@pytest.mark.parametrize("queries", [1, 4, 8])
def test_attention_passes_nothing_between_threads_inside_its_loop(queries: int, tmp_path: Path) -> None:
    types = dict.fromkeys(("qkv", "keys", "values"), "*bf16") | {"turns": "*fp32", "places": "*i64", "firsts": "*i32"}
    types |= {"sums": "*fp32", "mosts": "*fp32", "totals": "*fp32", "max_places": "i32", "scale": "fp32"}
    constants = {"HEADS": 32, "KV_HEADS": 32 // queries, "H": 128, "HALF": 64, "G": queries}
    constants |= {"S": max(32 // queries, 8), "PARTS": 4}
    found = compiled("_attend", types, constants, 4, tmp_path)
    assert "v4.b32" in found["ptx"]
    assert "STACK:0 " in found["used"], found["used"]
    assert found["exchanges"] == 0
