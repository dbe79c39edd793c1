"""One process without a launcher: the layers are plain layers, and nothing stands that a network would need."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json, torch, torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_registry
from torch import nn
import parallel

world = parallel.start_world(device="cpu", settings={"seed": 1})
found = {
    "mesh": [world.mesh.rank, world.mesh.size, world.mesh.group is None],
    "process group": dist.is_initialized(),
    "registry": fairscale_registry.model_parallel_is_initialized(),
    "backend": world.placement.backend,
    "device": str(world.device),
    "together": world.together("working", lambda: 7),
}
torch.manual_seed(1)
x, ids, target = torch.randn(2, 3, 8), torch.randint(0, 8, (2, 3)), torch.randint(0, 8, (2, 3))
pairs = {
    "ColumnParallelLinear": (parallel.ColumnParallelLinear(8, 8), nn.Linear(8, 8), x),
    "RowParallelLinear": (parallel.RowParallelLinear(8, 8), nn.Linear(8, 8), x),
    "VocabParallelEmbedding": (parallel.VocabParallelEmbedding(8, 8, -1), nn.Embedding(8, 8, -1), ids),
    "ParallelEmbedding": (parallel.ParallelEmbedding(8, 8, -1), nn.Embedding(8, 8, -1), ids),
}
for name, (layer, uncut, given) in pairs.items():
    layer.load_state_dict(uncut.state_dict())
    layer(given).sum().backward()
    uncut(given).sum().backward()
    found[name] = torch.equal(layer(given), uncut(given)) and torch.equal(layer.weight.grad, uncut.weight.grad)
loss = parallel.vocab_parallel_cross_entropy(x.double(), target)
wanted = nn.functional.cross_entropy(x.double().view(6, 8), target.view(6), reduction="none").view(2, 3)
found["cross entropy"] = bool(((loss - wanted).abs() < 1e-12).all())
world.close()
print(json.dumps(found))
"""


def test_one_process_has_no_group_and_no_registry_and_its_layers_are_the_uncut_ones() -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # Nothing but the one line: stdout belongs to results.
    assert json.loads(done.stdout) == {
        "mesh": [0, 1, True],
        "process group": False,
        "registry": False,
        "backend": None,
        "device": "cpu",
        "together": 7,
        "ColumnParallelLinear": True,
        "RowParallelLinear": True,
        "VocabParallelEmbedding": True,
        "ParallelEmbedding": True,
        "cross entropy": True,
    }
