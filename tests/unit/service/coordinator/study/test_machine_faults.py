"""A machine that has run out of a resource: studies wait and say for what, and none fails of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces.errors import machine_fault
from service.coordinator import outages
from service.coordinator.chores import preparation
from service.coordinator.chores.schedules import fire_schedules
from service.coordinator.cluster import ray_deaths
from service.coordinator.cluster.ray_deaths import full_disk
from service.coordinator.cluster.ray_workers import ClusterError
from service.coordinator.study import attempts, recovery, snapshot_reader
from service.coordinator.study.leased_study import LeasedStudy
from service.db.models import Schedule
from service.schedules import sweeps
from service.states import StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.errors import DataError, ModelError
from workers.pack.endings import ending

FAULTS = ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE", "ENOMEM"]


def fault(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), "/tmp/x")


class Failing:
    """Raises a number of times, then does what it stands for."""

    def __init__(self, work: Callable[..., Any], error: Exception, times: int) -> None:
        self._work, self._error, self.left = work, error, times

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise self._error
        return self._work(*arguments, **named)


def live(lab: CoordinatorLab, study_id: str) -> None:
    """Rounds as the coordinator's process has them, until the study has ended."""
    for _ in range(2000):
        if lab.study(study_id).ended_at is not None:
            return
        lab.coordinator.live_through(lab.coordinator.round, threading.Event())
    raise AssertionError("the study did not end")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.002)


@pytest.mark.parametrize("name", FAULTS)
def test_a_study_whose_worker_cannot_be_started_waits_and_says_for_what(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lab = make_lab()
    failing = Failing(lab.cluster.start, fault(name), times=5)
    monkeypatch.setattr(lab.cluster, "start", failing)
    study_id = lab.submit()
    live(lab, study_id)
    assert failing.left == 0
    assert lab.study(study_id).state == StudyState.COMPLETED
    waits = [message for message in lab.events("waiting") if "this machine" in message]
    assert waits == [f"waiting for this machine: {fault(name)}"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (LeasedStudy, "ask"),
        (attempts, "open_attempt"),
        (recovery, "reconcile"),
        (snapshot_reader, "read_snapshot"),
    ],
)
def test_wherever_a_round_meets_a_full_disk_no_study_fails(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    lab = make_lab()
    real, left = getattr(owner, name), [3]

    def work(*arguments: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise fault("ENOSPC")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, work)
    study_id = lab.submit()
    live(lab, study_id)
    assert (left, lab.study(study_id).state) == ([0], StudyState.COMPLETED)


def test_a_cluster_that_does_not_answer_is_named_before_the_process_ends(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    failing = Failing(lab.cluster.start, ClusterError("no raylet\nmore"), times=1)
    monkeypatch.setattr(lab.cluster, "start", failing)
    with pytest.raises(ClusterError):
        lab.coordinator.live_through(lab.coordinator.round, threading.Event())
    assert lab.study(study_id).reason == "waiting for the Ray cluster: no raylet"
    live(lab, study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_fault_of_ours_still_fails_its_study(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    monkeypatch.setattr(lab.cluster, "start", Failing(lab.cluster.start, OSError("what?"), times=99))
    study_id = lab.submit()
    live(lab, study_id)
    assert lab.study(study_id).state == StudyState.FAILED


def test_a_stage_before_a_search_waits_for_the_machine(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    definition = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 20}}
    study_id = lab.submit(search=definition)
    failing = Failing(preparation.make, fault("EMFILE"), times=3)
    monkeypatch.setattr(preparation, "make", failing)
    for _ in range(10):
        lab.coordinator.live_through(lab.coordinator.round, threading.Event())
    study = lab.study(study_id)
    assert (failing.left, study.ended_at) == (0, None)
    assert study.range_test_id is not None


def test_a_firing_that_meets_a_full_disk_is_made_later(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    with lab.database.write() as session:
        now = sweeps.database_now(session)
        schedule = Schedule(name="n", cron="* * * * *", timezone="UTC", definition=DEFINITION)
        schedule.next_fire_at = now
        session.add(schedule)
    failing = Failing(sweeps.fire, fault("ENOSPC"), times=1)
    monkeypatch.setattr(sweeps, "fire", failing)
    with pytest.raises(OSError, match="No space left"):
        fire_schedules(lab.database)
    fire_schedules(lab.database)
    with lab.database.read() as session:
        assert session.get_one(Schedule, schedule.id).last_fired_for is not None


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", [None, ModelError, DataError])
def test_a_fault_of_the_machine_while_loading_is_not_the_studys(
    name: str, kind: type[Exception] | None
) -> None:
    try:
        try:
            raise fault(name)
        except OSError as error:
            if kind is None:
                raise
            raise kind("it cannot be read") from error
    except Exception as error:  # noqa: BLE001 - whichever it is
        end = ending(error)
    assert (end.storage_fault, end.fatal_to_study) == (True, False)


def test_a_missing_file_is_the_studys() -> None:
    error = DataError("it is not there")
    error.__cause__ = FileNotFoundError(errno.ENOENT, "No such file")
    assert machine_fault(error) is None
    assert ending(error).fatal_to_study


def test_a_full_disk_is_named_where_a_worker_dies_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full_disk(str(tmp_path)) is None
    usage = SimpleNamespace(free=5 * 2**20)
    monkeypatch.setattr(ray_deaths.shutil, "disk_usage", lambda folder: usage)
    assert full_disk(str(tmp_path)) == f"the disk of {tmp_path} is full here: 5 MiB free"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone")
    assert full_disk(missing) == f"{missing} cannot be used here: No such file or directory"
