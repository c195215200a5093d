"""Whole studies of which single trials are stopped on request, on a cluster that trains nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from service.control.trial_stops import request_stop
from service.db.models import Trial
from service.errors import AlreadyEnded
from service.maintenance import integrity
from service.rest.preconditions import ANYTHING
from service.states import AttemptState, StudyState
from service.studies.pauses import request_pause, request_resume
from tests.support.service.coordinator import DEFINITION, CoordinatorLab

RANDOM = {**DEFINITION["search"], "algorithm": "random", "trials": 6}
WHY = "stopped on request of 'ada': too slow"


def stop(lab: CoordinatorLab, study_id: str, number: int) -> None:
    with lab.database.write() as session:
        request_stop(session, study_id, number, "too slow", ANYTHING, asked_by="ada")


def trial(lab: CoordinatorLab, study_id: str, number: int) -> Trial | None:
    with lab.database.read() as session:
        return session.get(Trial, (study_id, number))


def is_in(lab: CoordinatorLab, study_id: str, number: int, state: str) -> Callable[[], bool]:
    return lambda: (found := trial(lab, study_id, number)) is not None and found.state == state


def test_a_running_trial_is_stopped_and_counts_towards_the_trials(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(is_in(lab, study_id, 1, AttemptState.RUNNING))
    stop(lab, study_id, 1)
    stop(lab, study_id, 1)
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.reason) == (StudyState.COMPLETED, "all 6 trials ended")
    outcomes = {number: outcome for number, (outcome, _, _) in lab.values().items()}
    assert outcomes == {0: "completed", 1: "cancelled", **dict.fromkeys(range(2, 6), "completed")}
    found = trial(lab, study_id, 1)
    assert found is not None
    assert (found.state, found.reason) == (AttemptState.CANCELLED, WHY)
    assert lab.events("stop_requested") == ["'ada' asked for the trial's end: too slow"]
    assert integrity.find_violations(lab.settings) == []


def test_the_other_trials_have_the_values_that_they_would_have_had(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    whole, stopped = make_lab(), make_lab()
    whole.run(whole.submit(search=RANDOM))
    study_id = stopped.submit(search=RANDOM)
    stopped.rounds(is_in(stopped, study_id, 0, AttemptState.RUNNING))
    stop(stopped, study_id, 0)
    stopped.run(study_id)
    expected, found = whole.values(), stopped.values()
    assert {n: v for n, v in found.items() if n} == {n: v for n, v in expected.items() if n}


def test_a_trial_of_a_paused_study_ends_when_the_study_is_resumed(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(is_in(lab, study_id, 0, AttemptState.RUNNING))
    with lab.database.write() as session:
        request_pause(session, study_id)
    lab.rounds(lambda: lab.study(study_id).state == StudyState.PAUSED)
    stop(lab, study_id, 0)
    with lab.database.write() as session:
        request_resume(session, study_id)
    lab.run(study_id)
    assert lab.values()[0][0] == "cancelled"
    assert [a.state for a in lab.attempts() if a.trial_number == 0] == [AttemptState.PAUSED]
    assert lab.study(study_id).reason == "all 6 trials ended"
    assert integrity.find_violations(lab.settings) == []


def test_a_trial_that_has_ended_cannot_be_stopped(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(is_in(lab, study_id, 0, AttemptState.COMPLETED))
    with pytest.raises(AlreadyEnded, match="Trial 0 of the study 's' is already completed"):
        stop(lab, study_id, 0)
    lab.run(study_id)
    with pytest.raises(AlreadyEnded, match="The study 's' is already completed"):
        stop(lab, study_id, 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_is_carried_out_once_through_deaths_of_coordinators(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(is_in(lab, study_id, 2, AttemptState.RUNNING))
    stop(lab, study_id, 1)
    stop(lab, study_id, 2)
    lab.run_through_deaths(study_id, random.Random(seed), monkeypatch, chance=0.05)
    assert lab.study(study_id).state == StudyState.COMPLETED
    cancelled = [number for number, (outcome, _, _) in lab.values().items() if outcome == "cancelled"]
    assert set(cancelled) <= {1, 2}
    assert lab.study(study_id).reason == "all 6 trials ended"
    assert integrity.find_violations(lab.settings) == []
