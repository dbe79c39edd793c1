"""Pools of gloo ranks, one per size, shared by all tests of a session."""

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pool_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Pool]]:
    """The session's pool of a given size; its ranks start when first asked for."""
    pools: dict[int, Pool] = {}

    def of(size: int) -> Pool:
        if size not in pools:
            pools[size] = Pool(size, tmp_path_factory.mktemp(f"pool-of-{size}"))
        return pools[size]

    yield of
    for pool in pools.values():
        pool.close()


@pytest.fixture(params=[1, 2, 4], ids="{}-ranks".format)
def ranks(request: pytest.FixtureRequest, pool_of: Callable[[int], Pool]) -> Pool:
    """1, 2 and 4 ranks in turn; a test that wants other sizes parametrises `ranks` indirectly."""
    return pool_of(request.param)
