"""What is read of a study before each decision: not what has ended long ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from service.coordinator.cluster.sent_verdicts import SentVerdicts
from service.coordinator.policy.placement import Placement
from service.coordinator.policy.snapshot import Snapshot, TrialPhase
from service.coordinator.study.leased_study import LeasedStudy
from service.coordinator.study.snapshot_reader import limits_of, read_snapshot
from service.db.models import Attempt
from service.states import LossCause, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab, Killed
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

MakeLab = Callable[..., CoordinatorLab]
RANDOM = {**DEFINITION["search"], "algorithm": "random"}


def look(lab: CoordinatorLab) -> tuple[Snapshot, int]:
    """The only study as it is now, and how many attempts were read for that."""
    [runner] = lab.runners
    loaded: list[object] = []

    def note(row: object, _: Any) -> None:
        loaded.append(row)

    event.listen(Attempt, "load", note)
    try:
        sent = SentVerdicts(stop_grace=1.0, pause_grace=1.0)
        found = read_snapshot(runner.study, limits_of(runner.study), sent, placement=Placement())
    finally:
        event.remove(Attempt, "load", note)
    return found, len(loaded)


def ended(lab: CoordinatorLab) -> int:
    return sum(len(runner.study.ends) for runner in lab.runners)


def test_attempts_of_trials_that_have_ended_are_not_read(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.submit(search=RANDOM)
    lab.rounds(lambda: ended(lab) >= 6)
    found, read = look(lab)
    live = [trial for trial in found.trials if trial.phase is TrialPhase.LIVE]
    assert read == len(live) <= 3
    assert [trial.number for trial in found.trials] == list(range(len(found.trials)))
    assert sum(trial.phase is TrialPhase.ENDED for trial in found.trials) == ended(lab)
    assert (found.running_seconds, found.gpu_hours) == (0.0, 0.0)


def test_all_are_read_where_a_budget_of_time_depends_on_them(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.submit(search=RANDOM, budget={"max_parallel_trials": 3, "timeout": "10h"})
    lab.rounds(lambda: ended(lab) >= 6)
    lab.let_time_pass(60)
    found, read = look(lab)
    assert read == len(lab.attempts())
    assert found.running_seconds >= 60


def test_what_died_beside_a_lost_trial_counts_although_it_has_ended(make_lab: MakeLab) -> None:
    """A trial that was told to be pruned ends with its worker; its pack-mate was not alone all the same."""
    lab = make_lab(1, slots=2)
    lab.submit(search=RANDOM, budget={"max_parallel_trials": 2})
    lab.rounds(lambda: lab.cluster.running == 2 and all(a.last_rung for a in lab.attempts()))
    told, lost = lab.attempts()
    with lab.database.write() as session:
        session.get_one(Attempt, told.id).verdict_reason = "behind its peers"
    [runner] = lab.runners
    runner.events.on_lost([lost.worker_id], "killed", LossCause.WORKER_DIED)
    found, read = look(lab)
    by_number = {trial.number: trial for trial in found.trials}
    assert by_number[told.trial_number].phase is TrialPhase.ENDED
    assert by_number[lost.trial_number].suspect
    assert read >= 2


def test_a_fault_of_the_whole_study_ends_it_also_under_the_next_coordinator(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad_data(order: TrialOrder) -> TrialOutcome:
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.FAILED,
            reason="the data cannot be read",
            fatal_to_study=True,
        )

    lab = make_lab(ending=bad_data)
    study_id = lab.submit(search=RANDOM)

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(LeasedStudy, "end", dies)
        with pytest.raises(Killed):
            lab.run(study_id)
    lab.crash()
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.FAILED
    assert lab.study(study_id).reason == "the data cannot be read"
