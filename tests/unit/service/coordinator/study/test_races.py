"""What comes between a coordinator's look at a study and what it does: people, outages, older workers."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.coordinator import leases
from service.coordinator.cluster.worker_group import WorkerGroup
from service.coordinator.study import recovery, runner, snapshot_reader
from service.coordinator.study.leased_study import LeasedStudy
from service.db import database as db
from service.db.models import Attempt, Study
from service.optuna_store.fences import raise_fence
from service.optuna_store.storage import open_storage
from service.optuna_store.studies import read_trials
from service.states import LIVE_ATTEMPT_STATES, LossCause, StudyState
from service.studies.commands import request_cancel
from service.studies.pauses import request_pause, request_resume
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import Decision, TrialOrder, Verdict

MakeLab = Callable[..., CoordinatorLab]
RANDOM = {**DEFINITION["search"], "algorithm": "random", "trials": 8}


def ask_for(lab: CoordinatorLab, request: Callable[[Session, str], Study], study_id: str) -> None:
    with lab.database.write() as session:
        request(session, study_id)


def waiting_again(lab: CoordinatorLab, **budget: str) -> str:
    """A study that was paused with three trials under way, and is to go on."""
    study_id = lab.submit(budget={"max_parallel_trials": 3, **budget})
    lab.rounds(lambda: lab.cluster.running == 3)
    ask_for(lab, request_pause, study_id)
    lab.rounds(lambda: lab.study(study_id).state == StudyState.PAUSED)
    ask_for(lab, request_resume, study_id)
    return study_id


# -- people -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["a person", "dawn"])
def test_a_resume_that_comes_while_the_study_is_being_paused_is_not_lost(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM, budget={"until": "06:00", "max_parallel_trials": 3})
    lab.rounds(lambda: lab.cluster.running == 3)
    dismiss, resumed = WorkerGroup.dismiss, []

    def dismiss_and_hear(group: WorkerGroup) -> None:
        dismiss(group)
        if not resumed:
            resumed.append(study_id)
            ask_for(lab, request_resume, study_id)

    monkeypatch.setattr(WorkerGroup, "dismiss", dismiss_and_hear)
    if why == "dawn":
        with lab.database.write() as session:
            study = session.get_one(Study, study_id)
            assert study.started_at is not None
            study.started_at -= timedelta(days=1)
    else:
        ask_for(lab, request_pause, study_id)
    lab.run(study_id)
    assert resumed == [study_id]
    assert lab.events("resume_requested") == ["the pause was cancelled before the study was paused"]
    assert lab.events("study_paused") == []
    assert len(lab.values()) == 8


def test_the_timeout_does_not_count_a_wait_that_ends_in_another_pause(make_lab: MakeLab) -> None:
    lab = make_lab()
    study_id = waiting_again(lab, timeout="1h")
    with lab.database.write() as session:
        study = session.get_one(Study, study_id)
        assert study.resumed_at is not None
        study.resumed_at -= timedelta(hours=2)  # nobody had a place for it
    ask_for(lab, request_pause, study_id)
    ask_for(lab, request_resume, study_id)
    assert lab.study(study_id).paused_seconds == pytest.approx(7200, abs=60)


def test_asking_a_study_to_go_on_that_waits_beyond_dawn_keeps_the_wait_off_its_timeout(
    make_lab: MakeLab,
) -> None:
    lab = make_lab()
    study_id = waiting_again(lab, until="06:00")
    with lab.database.write() as session:
        study = session.get_one(Study, study_id)
        assert study.resumed_at is not None
        assert study.started_at is not None
        study.resumed_at -= timedelta(days=1)
        study.started_at -= timedelta(days=2)
    ask_for(lab, request_resume, study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.QUEUED
    assert study.paused_seconds == pytest.approx(86400, abs=60)


@pytest.mark.parametrize("when", ["before it was noticed", "afterwards"])
def test_a_study_whose_databases_are_of_two_moments_can_be_cancelled(make_lab: MakeLab, when: str) -> None:
    lab = make_lab()
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    with lab.database.write() as session:
        session.add(
            Attempt(study_id=study_id, trial_number=99, ordinal=1, worker_id="gone", artifact_dir="/a")
        )
    if when == "before it was noticed":
        ask_for(lab, request_cancel, study_id)
    lab.crash()
    lab.coordinator.round()
    if when == "afterwards":
        assert lab.study(study_id).state == StudyState.PAUSED
        ask_for(lab, request_cancel, study_id)
        lab.coordinator.round()
    study = lab.study(study_id)
    assert (study.state, study.reason) == (StudyState.CANCELLED, "cancelled on request")
    assert lab.cluster.alive == []
    assert [a for a in lab.attempts() if a.state in LIVE_ATTEMPT_STATES] == []
    assert "running" not in {t.state for t in read_trials(lab.storage, "s")}


# -- outages and lost leases --------------------------------------------------------------------------


def test_an_outage_while_a_study_is_abandoned_leaves_nothing_alive_in_a_study_that_is_over(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    lost = lab.runners[0].events.on_lost
    away = OperationalError("COMMIT", {}, sqlite3.OperationalError())
    away.connection_invalidated = True
    answers = iter([away])

    def on_lost(*args: object) -> object:
        for error in answers:
            raise error
        return lost(*args)  # type: ignore[arg-type]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(lab.runners[0].events, "on_lost", on_lost)
    monkeypatch.setattr(snapshot_reader, "read_snapshot", broken)
    with pytest.raises(OperationalError):
        lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.RUNNING
    lab.crash()
    lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.FAILED
    assert [a for a in lab.attempts() if a.state in LIVE_ATTEMPT_STATES] == []
    assert lab.cluster.alive == []


def test_a_study_that_cannot_be_repaired_leaves_no_worker_behind(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    lab.crash()

    def broken(study: LeasedStudy) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(recovery, "reconcile", broken)
    lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.FAILED
    assert lab.cluster.alive == []


def test_a_study_that_cannot_be_read_and_is_taken_by_another_does_not_end_the_coordinator(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    with lab.database.write() as session:
        session.get_one(Study, study_id).definition = {"name": "of another version"}
    refuse = lab.coordinator._refuse

    def overtaken(lease: leases.Lease, reason: str) -> None:
        with lab.database.write() as session:
            session.get_one(Study, study_id).lease_owner = "another"
        refuse(lease, reason)

    monkeypatch.setattr(lab.coordinator, "_refuse", overtaken)
    lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.QUEUED


def test_a_fence_of_another_owner_with_the_same_number_is_outrun(make_lab: MakeLab) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    raise_fence(lab.storage, "s", number=1, owner="of a time that was forgotten")
    lab.coordinator.round()
    assert lab.study(study_id).lease_number == 2
    assert [runner.study.lease.number for runner in lab.runners] == [2]
    lab.run(study_id)


def test_the_lease_is_looked_after_between_two_actions(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    late = [0.0]
    clock = runner.clock
    monkeypatch.setattr(runner, "clock", lambda: clock() + late[0])
    ask, renew = LeasedStudy.ask, LeasedStudy.renew
    said: list[str] = []

    def slow_ask(study: LeasedStudy) -> int | None:
        late[0] += lab.settings.lease_seconds / 2
        said.append("asked")
        return ask(study)

    def renewed(study: LeasedStudy, seconds: float) -> None:
        said.append("renewed")
        renew(study, seconds)

    monkeypatch.setattr(LeasedStudy, "ask", slow_ask)
    monkeypatch.setattr(LeasedStudy, "renew", renewed)
    lab.rounds(lambda: said.count("asked") >= 3)
    assert all(pair != ("asked", "asked") for pair in itertools.pairwise(said)), said
    lab.run(study_id)


# -- workers ------------------------------------------------------------------------------------------


@contextmanager
def orders_on_their_way(
    lab: CoordinatorLab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[str, TrialOrder]]]:
    """What is sent out within does not arrive."""
    held: list[tuple[str, TrialOrder]] = []
    with monkeypatch.context() as slow:
        slow.setattr(lab.cluster, "submit", lambda worker_id, order: held.append((worker_id, order)))
        yield held


def test_an_order_that_arrives_while_its_worker_is_being_adopted_is_not_lost(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=RANDOM, budget={"max_parallel_trials": 1})
    with orders_on_their_way(lab, monkeypatch) as held:
        lab.rounds(lambda: bool(held))
        lab.crash()
        lab.coordinator.round()  # the worker said which orders it has: none
    for worker_id, order in held:
        lab.cluster.submit(worker_id, order)
    lab.run(study_id)
    assert [a.state for a in lab.attempts() if a.trial_number == 0] == ["completed"]


def test_a_worker_that_did_not_hear_that_its_attempt_is_lost_is_told_again(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: any(a.last_rung for a in lab.attempts()))
    [runner] = lab.runners
    attempt = next(a for a in lab.attempts() if a.state == "running")
    runner.events.lose(attempt.id, "given up", LossCause.NEVER_ARRIVED)
    told: list[Verdict] = []
    send = lab.cluster.send

    def heard(worker_id: str, verdict: Verdict) -> None:
        told.append(verdict)
        send(worker_id, verdict)

    monkeypatch.setattr(lab.cluster, "send", heard)
    lab.run(study_id)
    assert {v.attempt_id for v in told if v.decision is Decision.PAUSE} == {attempt.id}
    rungs = [rung for of, rung in lab.cluster.reported if of == attempt.id]
    assert len(rungs) < 3  # it did not train on to its end


def saved(lab: CoordinatorLab) -> dict[str, bytes]:
    found = {}
    for path in lab.settings.home.glob("*.db"):
        with sqlite3.connect(path) as connection:
            found[path.name] = connection.serialize()
        connection.close()
    return found


def put_back(lab: CoordinatorLab, files: dict[str, bytes]) -> None:
    """Both databases are as they were, which nobody else is told."""
    lab.close()
    for path in lab.settings.home.glob("*.db*"):
        path.unlink()
    for name, content in files.items():
        (lab.settings.home / name).write_bytes(content)
    lab.database = db.open_database(lab.settings)
    lab.storage = open_storage(lab.settings)
    lab.cluster.lose_connection()
    with lab.database.write() as session:
        for study in session.query(Study):
            study.lease_owner = study.lease_expires_at = None
    lab.coordinator = lab.new_coordinator()


@pytest.mark.parametrize("later", [4, 14])
def test_workers_that_know_attempts_of_a_time_that_was_forgotten_are_not_taken_over(
    make_lab: MakeLab, later: int
) -> None:
    """Their numbers are given out again, and a worker takes no attempt twice."""
    study = {"search": {**RANDOM, "trials": 12}, "budget": {"max_parallel_trials": 4}}
    undisturbed, lab = make_lab(slots=2), make_lab(slots=2)
    undisturbed.run(undisturbed.submit(**study))
    study_id = lab.submit(**study)
    lab.rounds(lambda: any(a.last_rung for a in lab.attempts()))
    files, newest = saved(lab), max(a.id for a in lab.attempts())
    for _ in range(later):
        lab.coordinator.round()
    before = len(lab.cluster.orders)
    put_back(lab, files)
    lab.run(study_id)
    assert lab.values() == undisturbed.values()
    attempts = [a for a in lab.attempts() if a.id > newest]
    taken = {order.attempt_id for order in lab.cluster.orders[before:]}
    assert {a.id for a in attempts} == taken
    new = {a.trial_number for a in attempts if a.ordinal == 1}
    assert new
    assert [lab.rungs()[number] for number in new] == [undisturbed.rungs()[number] for number in new]
