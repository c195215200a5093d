"""Two coordinators on one database and one cluster, and databases that go away under one."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import OperationalError

from service.coordinator import outages
from service.coordinator.loop import Coordinator
from service.coordinator.policy import retries
from service.db.database import database_now
from service.db.models import Study
from service.maintenance import integrity
from service.settings import Settings
from service.states import StudyState
from tests.support.fakes.cluster import FakeCluster
from tests.support.service.coordinator import DEFINITION, CoordinatorLab

SHORT = {**DEFINITION["search"], "algorithm": "random", "trials": 6}


@pytest.fixture
def make_lab(
    settings: Settings, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., CoordinatorLab]]:
    monkeypatch.setattr(retries, "LONGEST_REST_SECONDS", 0.0)
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.01)
    labs: list[CoordinatorLab] = []

    def make(cpus: int = 4) -> CoordinatorLab:
        url = None if backend == "sqlite" else settings.database_url
        labs.append(CoordinatorLab(tmp_path / f"lab-{len(labs)}", FakeCluster(cpus), database_url=url))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


def _second(lab: CoordinatorLab) -> Coordinator:
    """Another coordinator, with its own connections to the cluster."""
    return Coordinator(lab.settings, lab.database, lab.storage, lab.cluster.another_view())


def _expire(lab: CoordinatorLab, coordinator: Coordinator) -> None:
    """The leases of one coordinator run out."""
    with lab.database.write() as session:
        for study in session.scalars(select(Study).where(Study.lease_owner == coordinator.owner)):
            study.lease_expires_at = database_now(session) - timedelta(seconds=1)


def _no_violations(lab: CoordinatorLab) -> None:
    assert integrity.read_violations(lab.database.engine, lab.storage.engine) == []


def test_two_coordinators_share_the_studies_and_each_is_run_once(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=8)
    search = {**SHORT, "trials": 3}
    studies = [lab.submit(name=f"s{i}", search=search) for i in range(5)]
    first, second = lab.coordinator, _second(lab)
    most = lab.settings.max_running_studies
    for _ in range(400):
        for coordinator in (first, second):
            coordinator.round()
        assert not set(first.studies) & set(second.studies)
        assert max(len(first.studies), len(second.studies)) <= most
        if all(lab.study(s).state == StudyState.COMPLETED for s in studies):
            break
    assert {lab.study(s).state for s in studies} == {StudyState.COMPLETED}
    trained = [(a.study_id, a.trial_number) for a in lab.attempts()]
    assert sorted(trained) == sorted((s, n) for s in studies for n in range(3))
    assert lab.cluster.alive == []
    _no_violations(lab)


def test_a_coordinator_frozen_beyond_its_lease_leaves_study_and_workers_alone_when_it_wakes(
    make_lab: Callable[..., CoordinatorLab], caplog: pytest.LogCaptureFixture
) -> None:
    lab = make_lab(cpus=3)
    study_id = lab.submit(name="s", search=SHORT)
    frozen = lab.coordinator
    lab.rounds(lambda: len(lab.attempts()) >= 3)
    _expire(lab, frozen)
    second = _second(lab)
    second.round()
    assert set(second.studies) == {study_id}
    workers, number = lab.cluster.alive, lab.study(study_id).lease_number
    attempts = [(a.id, a.state) for a in lab.attempts()]
    [runner] = frozen.studies.values()
    runner._renewed_at -= lab.settings.lease_seconds  # so long has it slept
    with caplog.at_level(logging.WARNING):
        frozen.round()
    assert "gave up study s" in caplog.text
    assert frozen.studies == {}
    assert lab.cluster.alive == workers
    assert lab.study(study_id).lease_number == number
    assert [(a.id, a.state) for a in lab.attempts()] == attempts
    lab.coordinator = second
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert [a.ordinal for a in lab.attempts()] == [1] * 6
    _no_violations(lab)


def test_a_frozen_coordinator_that_does_not_look_at_the_clock_cannot_write_either(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """It wakes in the middle of its round, at every place where it writes."""
    lab = make_lab(cpus=3)
    study_id = lab.submit(name="s", search=SHORT)
    frozen = lab.coordinator
    lab.rounds(lambda: bool(lab.attempts()))
    _expire(lab, frozen)
    second = _second(lab)
    second.round()
    lost = 0
    for _ in range(200):
        if not frozen.studies:
            break
        for runner in frozen.studies.values():
            runner._renewed_at += 3600  # it believes that it renewed a moment ago
        frozen.round()
        lost += 1
    assert lost >= 1
    lab.coordinator = second
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert {a.trial_number for a in lab.attempts()} == set(range(6))
    _no_violations(lab)


class Outage:
    """Databases whose connections break and are refused, as those of a server that was stopped.

    Args:
        engines: theirs.
        statements: how many statements are refused until they are back.
        on_refused: told how many there have been.
    """

    def __init__(
        self, *engines: Engine, statements: float = 5, on_refused: Callable[[int], None] = lambda _: None
    ) -> None:
        self.refused = 0
        self.statements = statements
        self._on_refused = on_refused
        for engine in engines:
            event.listen(engine, "before_cursor_execute", self._refuse)

    def _refuse(self, *_: Any) -> None:
        if self.refused < self.statements:
            self.refused += 1
            self._on_refused(self.refused)
            raise OperationalError("any", None, Exception("gone"), connection_invalidated=True)


@pytest.mark.parametrize("which", ["service", "optuna", "both"])
def test_an_outage_is_sat_out_and_loses_nothing(
    make_lab: Callable[..., CoordinatorLab], caplog: pytest.LogCaptureFixture, which: str
) -> None:
    lab = make_lab(cpus=3)
    study_id = lab.submit(name="s", search=SHORT)
    lab.rounds(lambda: len(lab.attempts()) >= 4)
    workers, coordinator = list(lab.cluster.started), lab.coordinator
    service, optuna = [lab.database.engine, lab.database.writing], [lab.storage.engine]
    outage = Outage(*{"service": service, "optuna": optuna, "both": service + optuna}[which])
    with caplog.at_level(logging.WARNING, logger=outages.log.name):
        while not outage.refused:
            coordinator.live_through(coordinator.round, threading.Event())
    said = [record.message for record in caplog.records if record.name == outages.log.name]
    assert [message.split(",")[0].split(" after")[0] for message in said] == [
        "a database does not answer",
        "the databases answer again",
    ]
    assert outage.refused == outage.statements
    assert coordinator.studies == {}
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert [a.ordinal for a in lab.attempts()] == [1] * 6
    assert lab.cluster.started == workers
    assert lab.study(study_id).lease_number == 2  # taken again at once, not after it had run out
    _no_violations(lab)


def test_a_lease_that_ran_out_while_ray_did_not_answer_is_taken_again_with_its_workers(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """It runs out in the middle of a round, before the same round looks for leases that nobody has."""
    lab = make_lab(cpus=3)
    study_id = lab.submit(name="s", search=SHORT)
    lab.rounds(lambda: len(lab.attempts()) >= 4)
    workers = list(lab.cluster.started)
    _expire(lab, lab.coordinator)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert lab.study(study_id).lease_number == 2
    assert [a.ordinal for a in lab.attempts()] == [1] * 6
    assert lab.cluster.started == workers
    _no_violations(lab)


def test_a_coordinator_that_is_told_to_end_in_an_outage_ends(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    lab.submit(name="s", search=SHORT)
    lab.rounds(lambda: bool(lab.attempts()))
    stop = threading.Event()

    def end(refused: int) -> None:
        if refused == 3:
            stop.set()

    outage = Outage(lab.database.engine, lab.database.writing, statements=math.inf, on_refused=end)
    lab.coordinator.run(stop)
    assert outage.refused >= 3
    assert lab.cluster.alive != []
