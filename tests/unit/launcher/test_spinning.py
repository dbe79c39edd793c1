"""What torch's threads are told before torch is loaded."""

import pytest

from launcher.spinning import spin_briefly


def test_threads_look_for_work_only_briefly() -> None:
    environ: dict[str, str] = {}
    spin_briefly(environ)
    assert environ == {"GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "0"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_what_the_user_says_stands(said: dict[str, str]) -> None:
    environ = dict(said)
    spin_briefly(environ)
    assert environ == said
