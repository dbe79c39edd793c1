"""What is remembered of submitted jobs."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cluster.kinds import Status, Submitted
from launcher.cluster.records import find, remember, remember_end, remembered, state_folder
from parallel.errors import RefusedError

JOB = Submitted(kind="slurm", job_id="17", name="demo", folder="/shared/demo-1", output="/o", submitted_at=1e9)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDRUN_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "jobs"


def test_jobs_come_back_as_they_were_the_newest_first() -> None:
    assert remembered() == []
    other = replace(JOB, kind="kubernetes", job_id="demo", name="x", namespace="lab", target="Job", submitted_at=2e9)
    remember(JOB)
    remember(other)
    assert [record.submitted for record in remembered()] == [other, JOB]


def test_a_job_is_found_by_its_id_before_its_name_and_the_newest_wins() -> None:
    remember(JOB)
    remember(replace(JOB, job_id="18", submitted_at=1.1e9))
    remember(replace(JOB, job_id="19", name="17", submitted_at=1.2e9))
    # The same number again, of a cluster that was set up anew.
    remember(replace(JOB, folder="/shared/demo-2", submitted_at=1.3e9))
    found = [find(word) for word in ("17", "demo", "19")]
    assert [record and record.submitted.folder for record in found] == ["/shared/demo-2", "/shared/demo-2", JOB.folder]
    assert find("nosuch") is None


def test_how_a_job_ended_is_remembered() -> None:
    remember(JOB)
    ended = Status(state="failed", word="FAILED", detail="a rank failed", exit_code=3)
    remember_end(remembered()[0], ended)
    assert [(record.submitted, record.ended) for record in remembered()] == [(JOB, ended)]


def test_files_that_are_no_records_are_passed_over(state: Path) -> None:
    remember(JOB)
    for number, text in enumerate(
        ("", "{", "[]", "{}", '{"submitted": {}, "ended": null}', '{"submitted": 3}', "\xff")
    ):
        (state / f"9999-{number}.json").write_bytes(text.encode("latin-1"))
    (state / "9999-folder.json").mkdir()
    assert [record.submitted for record in remembered()] == [JOB]


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(state: Path) -> None:
    remember(JOB)
    file = next(state.glob("*.json"))
    file.write_text(file.read_text().replace('"kind"', '"colour": "blue", "kind"'))
    assert [record.submitted for record in remembered()] == [JOB]


def test_five_hundred_are_remembered_and_the_oldest_forgotten(state: Path) -> None:
    state.mkdir(parents=True)
    for number in range(505):
        (state / f"20010101-{number:06}-slurm-1.json").write_text("{}")
    remember(JOB)  # of later in that year
    left = sorted(path.name for path in state.iterdir())
    assert (len(left), left[0]) == (500, "20010101-000006-slurm-1.json")


def test_jobs_that_are_submitted_at_the_same_time_are_all_remembered() -> None:
    threads = [threading.Thread(target=remember, args=(replace(JOB, job_id=str(number)),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.submitted.job_id for record in remembered()} == {str(number) for number in range(20)}


def test_a_folder_that_cannot_be_written_to_is_told_and_the_job_goes_on(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state.parent.write_text("a file in the folder's place")
    remember(JOB)
    said = capfd.readouterr().err
    assert said.startswith("shardrun: warning: the job is submitted, but ")
    assert len(said.splitlines()) == 1


def test_the_folder_is_where_the_xdg_directories_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert state_folder({"SHARDRUN_STATE_DIR": "/s", "XDG_STATE_HOME": "/x"}) == Path("/s/jobs")
    assert state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/shardrun/jobs")
    assert state_folder({"XDG_STATE_HOME": "relative"}) == Path("/home/me/.local/state/shardrun/jobs")
    assert state_folder({}) == Path("/home/me/.local/state/shardrun/jobs")


def test_no_home_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(RefusedError, match="SHARDRUN_STATE_DIR"):
        state_folder({})
