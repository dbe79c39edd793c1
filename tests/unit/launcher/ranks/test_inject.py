"""Faults on purpose: how they are written, when they come, and what is said of those that never do."""

import logging
from collections.abc import Iterator

import pytest

from launcher.ranks.inject import Fault, Injector, check_faults, parse_faults
from parallel.errors import RankFailedError, RefusedError
from parallel.position import Recorder, position


def test_no_fault_is_asked_for_where_nothing_is_said() -> None:
    assert parse_faults(None) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill", Fault(kind="kill", seconds=1e9)),
        ("kill:rank=1,step=5", Fault(kind="kill", rank=1, step=5, seconds=1e9)),
        ("kill: rank = 1 , step = 5", Fault(kind="kill", rank=1, step=5, seconds=1e9)),
        ("hang:rank=1,seconds=3", Fault(kind="hang", rank=1, seconds=3.0)),
        ("slow:rank=1", Fault(kind="slow", rank=1, seconds=0.1)),
        ("raise:phase=loading", Fault(kind="raise", phase="loading", step=1, seconds=1e9)),
        ("raise:phase=prefilling", Fault(kind="raise", phase="prefilling", step=0, seconds=1e9)),
        ("exit:rank=2,attempt=1", Fault(kind="exit", rank=2, attempt=1, seconds=1e9)),
    ],
)
def test_a_fault_is_read(text: str, fault: Fault) -> None:
    assert parse_faults(text) == [fault]


def test_several_faults_are_told_apart_by_a_semicolon() -> None:
    assert [fault.kind for fault in parse_faults("slow:rank=0; kill:rank=1,step=9")] == ["slow", "kill"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "kil:rank=1",
            "inject is 'kil:rank=1'; wanted kill, hang, stop, slow, raise, exit, nan or oom, as kill:rank=1",
        ),
        ("", "inject is ''; wanted kill"),
        ("kill:rnak=1", "'rnak' is not a key of it; did you mean 'rank'"),
        ("kill:rank", "'rank' is not KEY=VALUE"),
        ("kill:rank=one", "rank is 'one'; wanted a whole number, 0 or more"),
        ("kill:step=-1", "step is '-1'; wanted a whole number, 0 or more"),
        ("kill:phase=sleeping", "phase is 'sleeping'; wanted meeting, making"),
        ("nan:phase=loading", "phase is 'loading'; wanted prefilling or decoding"),
        ("slow:seconds=soon", "seconds is 'soon'; wanted a number above 0"),
        ("slow:seconds=nan", "seconds is 'nan'; wanted a number above 0"),
        ("kill:rank=1;", "inject is ''; wanted kill"),
    ],
)
def test_what_is_not_a_fault_is_refused_with_what_was_wanted(text: str, says: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_faults(text)
    assert says in str(caught.value)


def test_a_fault_for_a_rank_that_will_not_be_there_is_refused() -> None:
    check_faults(parse_faults("kill:rank=1"), 2)
    with pytest.raises(RefusedError, match="inject is for rank 2 but the run has 2, counted from 0"):
        check_faults(parse_faults("kill:rank=1;kill:rank=2"), 2)


def test_a_fault_comes_at_its_step_of_its_phase_and_no_other() -> None:
    fault = parse_faults("kill:phase=decoding,step=5")[0]
    assert [step for step in range(9) if fault.due("decoding", step)] == [5]
    assert not fault.due("loading", 5)


def test_a_phase_is_known_by_its_first_word() -> None:
    fault = parse_faults("kill:phase=meeting")[0]
    assert fault.due("meeting the other ranks", 0)


def test_slowness_begins_at_its_step_and_stays() -> None:
    fault = parse_faults("slow:step=3")[0]
    assert [step for step in range(6) if fault.due("decoding", step)] == [3, 4, 5]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """This process's own position, at whose listener an injector puts itself."""
    yield position
    position.listener = None


def test_only_the_rank_and_the_attempt_that_are_meant_fail(recorder: Recorder) -> None:
    for rank, attempt in ((0, 0), (1, 1)):
        Injector(parse_faults("raise:rank=1,step=2"), rank, attempt)
        assert recorder.listener is None
    Injector(parse_faults("raise:rank=1,step=2"), 1, 0)
    recorder.phase("decoding")
    recorder.step(1)
    with pytest.raises(RankFailedError, match=r"rank 1 failed while decoding \(step 2\): it was asked to"):
        recorder.step(2)


def test_a_fault_that_comes_says_so_once(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    injector = Injector(parse_faults("slow:seconds=0.001"), 0, 0)
    with caplog.at_level(logging.WARNING, "shardrun"):
        recorder.phase("decoding")
        for step in (1, 2, 3):
            recorder.step(step)
        injector.end()
    assert caplog.messages == ["inject: slow comes now, while decoding (step 1)"]


def test_a_fault_that_never_came_is_told_at_the_end(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    injector = Injector(parse_faults("raise:step=500"), 0, 0)
    with caplog.at_level(logging.WARNING, "shardrun"):
        recorder.phase("decoding")
        recorder.step(1)
        injector.end()
    never = "note: inject: raise:rank=0,phase=decoding,step=500 never came: the work was done before"
    assert caplog.messages == [never]


def test_an_exhausted_memory_is_what_the_allocator_says_and_takes_nothing(recorder: Recorder) -> None:
    Injector(parse_faults("oom:step=0"), 0, 0)
    with pytest.raises(RuntimeError, match=r"(?i)can't allocate memory|out of memory"):
        recorder.phase("decoding")
