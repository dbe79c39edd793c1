"""How long torch's threads look for more work before they sleep.

GNU OpenMP lets them look for milliseconds after each product. That is good for one process on an idle machine, and
costs up to fifteenfold where several ranks, or anything else, want the same cores (docs/performance.md). Read when
torch is loaded, so it must be set before, and ranks inherit it.
"""

from collections.abc import MutableMapping

_COUNT = "GOMP_SPINCOUNT"
# Some tens of microseconds: longer than the gap between two products of a prefill, shorter than a step of decoding.
_SOME = "10000"


def spin_briefly(environ: MutableMapping[str, str]) -> None:
    """Say so, unless the user has said something else."""
    if _COUNT not in environ and "OMP_WAIT_POLICY" not in environ:
        environ[_COUNT] = _SOME
