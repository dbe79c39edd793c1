"""What torch is and which GPUs it reaches, a line of JSON each: `python -P -m launcher.doctor.torch_probe`.

In a process of its own: torch may be missing, broken or slow to load, and a sick GPU may hang whoever touches it.
"""

import json
import sys
import time


def main() -> None:
    started = time.monotonic()
    try:
        import torch
        import torch.distributed as dist
    except Exception as error:  # an ImportError, or whatever a broken library raises
        _say({"import_error": f"{type(error).__name__}: {error}"})
        return
    distributed = dist.is_available()
    _say(
        {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "import_s": round(time.monotonic() - started, 2),
            "gloo": distributed and dist.is_gloo_available(),
            "nccl": distributed and dist.is_nccl_available(),
            "nccl_version": _nccl_version(),
        }
    )
    _say({"devices": torch.cuda.device_count()})
    for index in range(torch.cuda.device_count()):
        _say({"touching": index})
        _say({"device": index, "error": _touch(index)})


def _nccl_version() -> str | None:
    import torch  # known to load by now

    try:
        return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    except Exception:  # a build without NCCL says so in several ways
        return None


def _touch(index: int) -> str:
    """Compute something on the GPU; '' where it can."""
    import torch  # known to load by now

    try:
        total = int((torch.ones(1024, device=f"cuda:{index}") * 2).sum().item())
    except Exception as error:  # torch's errors of CUDA are of several kinds
        return str(error).partition("\n")[0]
    return "" if total == 2048 else f"computes wrongly: 2048 came out as {total}"


def _say(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
