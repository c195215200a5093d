"""Whole studies that are paused, resumed, cancelled and drained, on a cluster that trains nothing."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select

from service.db.models import Attempt, Study
from service.optuna_store.studies import read_trials
from service.states import AttemptState, StudyState
from service.studies.commands import request_cancel
from service.studies.pauses import request_pause, request_resume
from tests.support.service.coordinator import DEFINITION, GRID, CoordinatorLab

RANDOM = {
    **DEFINITION["search"],
    "algorithm": "random",
    # Of different lengths, so that some run while others end.
    "space": {**DEFINITION["search"]["space"], "epochs": {"choices": [1, 2, 3]}},
}


def pause(lab: CoordinatorLab, study_id: str) -> None:
    with lab.database.write() as session:
        request_pause(session, study_id)


def resume(lab: CoordinatorLab, study_id: str) -> None:
    with lab.database.write() as session:
        request_resume(session, study_id)


def cancel(lab: CoordinatorLab, study_id: str) -> None:
    with lab.database.write() as session:
        request_cancel(session, study_id)


def change(lab: CoordinatorLab, study_id: str, **columns: Any) -> None:
    with lab.database.write() as session:
        study = session.get_one(Study, study_id)
        for name, value in columns.items():
            setattr(study, name, value)


def is_in(lab: CoordinatorLab, study_id: str, state: StudyState) -> Callable[[], bool]:
    return lambda: lab.study(study_id).state == state


def run_to_pause(lab: CoordinatorLab, study_id: str) -> None:
    pause(lab, study_id)
    lab.rounds(is_in(lab, study_id, StudyState.PAUSED))


def with_settings(lab: CoordinatorLab, **changes: Any) -> CoordinatorLab:
    lab.settings = lab.settings.model_copy(update=changes)
    lab.coordinator = lab.new_coordinator()
    return lab


# -- pause and resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "parallel", "seed"),
    [({**RANDOM, "trials": 8}, 3, 1), (GRID, 3, 2), ({**DEFINITION["search"], "trials": 6}, 1, 3)],
    ids=["random", "grid", "tpe"],
)
def test_a_study_that_is_paused_again_and_again_ends_as_the_undisturbed_one(
    make_lab: Callable[..., CoordinatorLab], search: dict[str, Any], parallel: int, seed: int
) -> None:
    study = {"search": search, "budget": {"max_parallel_trials": parallel}}
    undisturbed, lab = make_lab(), make_lab()
    undisturbed.run(undisturbed.submit(**study))
    dice = random.Random(seed)
    study_id, pauses = lab.submit(**study), 0

    def perhaps() -> None:
        nonlocal pauses
        now = lab.study(study_id)
        if now.state == StudyState.PAUSED:
            if dice.random() < 0.5:
                resume(lab, study_id)
        elif not now.pause_requested and dice.random() < 0.15:
            pause(lab, study_id)
            pauses += 1

    lab.run(study_id, each=perhaps)
    assert pauses > 0
    assert lab.values() == undisturbed.values()
    assert lab.rungs() == undisturbed.rungs()
    assert lab.study(study_id).reason == undisturbed.study(undisturbed.attempts()[0].study_id).reason
    states = [a.state for a in lab.attempts()]
    assert "paused" in states
    assert "lost" not in states


def test_a_grid_is_gone_over_once_across_pauses_and_deaths(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=GRID)
    lab.rounds(lambda: len(lab.attempts()) > 3)
    run_to_pause(lab, study_id)
    resume(lab, study_id)
    pause(lab, study_id)
    assert lab.study(study_id).state == StudyState.PAUSED
    resume(lab, study_id)
    lab.run_through_deaths(study_id, random.Random(5), monkeypatch)
    values = lab.values()
    assert len(values) == 8
    assert len({tuple(sorted(params.items())) for _, _, params in values.values()}) == 8
    assert {outcome for outcome, _, _ in values.values()} == {"completed"}


def test_a_paused_study_holds_no_worker_no_lease_and_no_place(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = with_settings(make_lab(), max_running_studies=1)
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    run_to_pause(lab, study_id)
    study = lab.study(study_id)
    assert (study.reason, study.lease_owner, study.pause_requested) == ("paused on request", None, False)
    assert lab.cluster.alive == []
    assert [a.state for a in lab.attempts()][-3:] == ["paused"] * 3
    assert {a.reason for a in lab.attempts() if a.state == "paused"} == {"paused on request"}
    other = lab.submit(name="other")
    lab.run(other)
    assert lab.study(study_id).state == StudyState.PAUSED
    resume(lab, study_id)
    assert (lab.study(study_id).state, lab.study(study_id).paused_at) == (StudyState.QUEUED, None)
    lab.run(study_id)
    kinds = ["pause_requested", "study_paused", "study_queued"]
    assert [lab.events(kind)[-1] for kind in kinds] == [
        "a pause was requested over REST",
        "paused on request",
        "resumed; waiting for a coordinator",
    ]


def test_a_trial_that_the_pruner_has_decided_against_is_pruned_and_not_put_down(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(
        search={**RANDOM, "trials": 6},
        pruning={"algorithm": "threshold", "upper": 0.0, "min_examples": 25},
        budget={"max_parallel_trials": 1},
    )
    lab.rounds(lambda: any(a.verdict_reason for a in lab.attempts()))
    run_to_pause(lab, study_id)
    decided = [a for a in lab.attempts() if a.verdict_reason]
    assert {a.state for a in decided} == {"pruned"}
    resume(lab, study_id)
    lab.run(study_id)
    assert len(lab.values()) == 6


def test_a_pause_is_taken_back_while_it_is_under_way(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    pause(lab, study_id)
    lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.RUNNING
    resume(lab, study_id)
    lab.run(study_id)
    assert lab.events("study_paused") == []
    assert lab.events("resume_requested") == ["the pause was cancelled before the study was paused"]
    assert len(lab.values()) == 12


def test_a_queued_study_is_paused_at_once_and_has_not_begun_when_it_is_resumed(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    pause(lab, study_id)
    assert lab.study(study_id).state == StudyState.PAUSED
    for _ in range(3):
        lab.coordinator.round()
    assert (lab.study(study_id).state, lab.attempts()) == (StudyState.PAUSED, [])
    resume(lab, study_id)
    lab.run(study_id)
    assert lab.study(study_id).paused_seconds == 0.0


def test_asking_again_changes_nothing(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    resume(lab, study_id)
    pause(lab, study_id)
    revision = lab.study(study_id).revision
    pause(lab, study_id)
    assert lab.study(study_id).revision == revision
    lab.rounds(is_in(lab, study_id, StudyState.PAUSED))
    revision = lab.study(study_id).revision
    pause(lab, study_id)
    assert lab.study(study_id).revision == revision
    assert len(lab.events("pause_requested")) == 1
    assert lab.events("resume_requested") == []


def test_repeats_go_on_after_a_pause_as_if_there_had_been_none(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    study = {"search": {**RANDOM, "trials": 4}, "repeats": {"top_k": 2, "seeds": 2}}
    undisturbed, lab = make_lab(), make_lab()
    undisturbed.run(undisturbed.submit(**study))
    study_id = lab.submit(**study)
    lab.rounds(lambda: len(lab.attempts()) > 5)
    run_to_pause(lab, study_id)
    resume(lab, study_id)
    lab.run(study_id)
    assert lab.values() == undisturbed.values()
    assert lab.study(study_id).reason.endswith("run again with 2 seeds each")


# -- workers that do not obey -------------------------------------------------------------------------


def test_a_wedged_worker_is_killed_and_its_trial_goes_on_from_its_last_checkpoint(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    undisturbed = make_lab()
    undisturbed.run(undisturbed.submit(search=RANDOM))
    lab = with_settings(make_lab(), pause_grace_seconds=0.02)
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: lab.cluster.running == 3)
    wedged = lab.cluster.alive[0]
    lab.cluster.wedge(wedged)
    pause(lab, study_id)
    lab.rounds(is_in(lab, study_id, StudyState.PAUSED), limit=2000)
    [left] = [a for a in lab.attempts() if a.worker_id == wedged and a.state == AttemptState.PAUSED]
    assert left.reason == (
        "paused on request; its worker did not obey within 0.02 s and was killed; the trial resumes from its"
        " last checkpoint"
    )
    assert lab.cluster.alive == []
    resume(lab, study_id)
    lab.run(study_id)
    assert lab.values() == undisturbed.values()


def test_a_cancel_ends_although_a_worker_is_wedged(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = with_settings(make_lab(), stop_grace_seconds=0.02)
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: lab.cluster.running == 3)
    lab.cluster.wedge(lab.cluster.alive[0])
    cancel(lab, study_id)
    lab.rounds(is_in(lab, study_id, StudyState.CANCELLED), limit=2000)
    assert lab.cluster.alive == []
    assert {outcome for outcome, _, _ in lab.values().values()} <= {"completed", "cancelled"}
    reasons = [a.reason for a in lab.attempts() if a.state == AttemptState.CANCELLED]
    assert sum("did not obey within 0.02 s and was killed" in reason for reason in reasons) == 1


# -- cancel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
def test_a_paused_study_is_cancelled_with_its_trials_though_no_place_is_free(
    make_lab: Callable[..., CoordinatorLab], resumed: bool
) -> None:
    lab = with_settings(make_lab(), max_running_studies=1)
    study_id = lab.submit()
    lab.rounds(lambda: lab.cluster.running == 3)
    run_to_pause(lab, study_id)
    blocker = lab.submit(name="blocker")
    lab.rounds(is_in(lab, blocker, StudyState.RUNNING))
    if resumed:
        resume(lab, study_id)
    cancel(lab, study_id)
    lab.rounds(is_in(lab, study_id, StudyState.CANCELLED), limit=5)
    assert lab.study(blocker).state == StudyState.RUNNING
    states = {trial.state for trial in read_trials(lab.storage, "s")}
    assert "running" not in states
    assert "cancelled" in {outcome for outcome, _, _ in lab.values().values()}


def test_a_study_that_was_paused_before_it_began_is_cancelled_like_a_queued_one(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    pause(lab, study_id)
    cancel(lab, study_id)
    lab.coordinator.round()
    assert lab.study(study_id).reason == "cancelled on request before it started"


# -- times --------------------------------------------------------------------------------------------


def test_at_dawn_a_study_is_paused_and_when_resumed_runs_until_the_next_one(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    until = {"until": "06:00", "until_timezone": "Europe/Berlin", "max_parallel_trials": 3}
    study_id = lab.submit(budget=until)
    lab.rounds(lambda: lab.cluster.running == 3)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    change(lab, study_id, started_at=yesterday)
    lab.rounds(is_in(lab, study_id, StudyState.PAUSED))
    dawn = lab.study(study_id).reason
    six = yesterday.astimezone(ZoneInfo("Europe/Berlin")).replace(hour=6, minute=0)
    if six <= yesterday:
        six += timedelta(days=1)
    assert dawn == f"budget.until 06:00 Europe/Berlin reached ({six:%Y-%m-%d %H:%M %Z})"
    assert lab.cluster.alive == []
    resume(lab, study_id)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_study_that_is_taken_up_after_the_next_dawn_is_put_down_again(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(budget={"until": "06:00", "max_parallel_trials": 3})
    lab.rounds(lambda: lab.cluster.running == 3)
    run_to_pause(lab, study_id)
    resume(lab, study_id)
    change(lab, study_id, resumed_at=datetime.now(UTC) - timedelta(days=1))
    change(lab, study_id, started_at=datetime.now(UTC) - timedelta(days=2))
    lab.rounds(is_in(lab, study_id, StudyState.PAUSED))
    assert lab.study(study_id).reason.startswith("budget.until 06:00 UTC reached")


def test_a_dawn_may_end_a_study_instead(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(
        search=RANDOM, budget={"until": "06:00", "until_action": "end", "max_parallel_trials": 3}
    )
    lab.rounds(lambda: any(a.state == "completed" for a in lab.attempts()))
    change(lab, study_id, started_at=datetime.now(UTC) - timedelta(days=1))
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.COMPLETED
    assert study.reason.startswith("budget.until 06:00 UTC reached")


@pytest.mark.parametrize("waited", ["paused_at", "resumed_at"])
def test_the_timeout_counts_neither_the_pause_nor_the_wait_after_it(
    make_lab: Callable[..., CoordinatorLab], waited: str
) -> None:
    lab = make_lab()
    study_id = lab.submit(budget={"timeout": "1h", "max_parallel_trials": 3})
    lab.rounds(lambda: lab.cluster.running == 3)
    run_to_pause(lab, study_id)
    hours = timedelta(hours=2)
    with lab.database.write() as session:
        for attempt in session.scalars(select(Attempt)):
            attempt.dispatched_at -= hours
        study = session.get_one(Study, study_id)
        if waited == "paused_at":
            assert study.paused_at is not None
            study.paused_at -= hours
        request_resume(session, study_id)
        if waited == "resumed_at":
            assert study.resumed_at is not None
            study.resumed_at -= hours
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.reason == "all 12 trials ended"
    assert study.paused_seconds == pytest.approx(7200, abs=60)


# -- range tests --------------------------------------------------------------------------------------


def test_a_study_that_waits_for_its_range_test_is_paused_with_it(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    search = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 30}}
    study_id = lab.submit(search=search)
    lab.rounds(lambda: lab.cluster.running > 0)
    test_id = str(lab.study(study_id).range_test_id)
    pause(lab, study_id)
    assert lab.study(study_id).state == StudyState.PAUSED
    lab.rounds(is_in(lab, test_id, StudyState.PAUSED))
    for _ in range(5):
        lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.PAUSED
    assert lab.study(study_id).preparation is None
    resume(lab, study_id)
    assert lab.study(test_id).state == StudyState.QUEUED
    assert lab.study(study_id).reason.startswith("resumed; waiting for its learning-rate range test")
    lab.run(study_id)
    assert lab.study(test_id).state == StudyState.COMPLETED
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_range_test_that_is_paused_by_itself_holds_its_study_up_until_it_is_resumed(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    search = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 30}}
    study_id = lab.submit(search=search)
    lab.rounds(lambda: lab.study(study_id).range_test_id is not None)
    test_id = str(lab.study(study_id).range_test_id)
    run_to_pause(lab, test_id)
    for _ in range(5):
        lab.coordinator.round()
    assert lab.study(study_id).state == StudyState.QUEUED
    resume(lab, test_id)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_paused_study_and_its_range_test_are_cancelled_together(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    search = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 30}}
    study_id = lab.submit(search=search)
    lab.rounds(lambda: lab.cluster.running > 0)
    test_id = str(lab.study(study_id).range_test_id)
    pause(lab, study_id)
    lab.rounds(is_in(lab, test_id, StudyState.PAUSED))
    cancel(lab, study_id)
    lab.rounds(is_in(lab, test_id, StudyState.CANCELLED))
    assert lab.study(study_id).state == StudyState.CANCELLED


# -- deaths -------------------------------------------------------------------------------------------


def test_pauses_survive_coordinators_that_die_at_any_write(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, lab = make_lab(), make_lab()
    undisturbed.run(undisturbed.submit(search=RANDOM))
    study_id = lab.submit(search=RANDOM)
    dice = random.Random(11)
    round_of = type(lab.coordinator).round

    def with_pauses(coordinator: Any) -> None:
        state = lab.study(study_id).state
        if state == StudyState.PAUSED:
            resume(lab, study_id)
        elif state in (StudyState.RUNNING, StudyState.QUEUED) and dice.random() < 0.05:
            pause(lab, study_id)
        round_of(coordinator)

    monkeypatch.setattr(type(lab.coordinator), "round", with_pauses)
    deaths = lab.run_through_deaths(study_id, random.Random(3), monkeypatch)
    assert deaths > 3
    assert len(lab.events("study_paused")) > 2
    assert lab.values() == undisturbed.values()


# -- draining -----------------------------------------------------------------------------------------


def test_a_coordinator_whose_workers_end_with_it_has_their_trials_put_down(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    undisturbed = make_lab()
    undisturbed.run(undisturbed.submit(search=RANDOM))
    lab = with_settings(make_lab(), workers_end_with_coordinator=True)
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: lab.cluster.running == 3)
    stop = threading.Event()
    stop.set()
    lab.coordinator.run(stop)
    study = lab.study(study_id)
    assert (study.state, study.lease_owner) == (StudyState.RUNNING, None)
    assert [a.state for a in lab.attempts()][-3:] == ["paused"] * 3
    assert lab.attempts()[-1].reason == "the service is ending, and its workers with it"
    for worker_id in lab.cluster.alive:
        lab.cluster.kill(worker_id)
    lab.cluster.lose_connection()
    lab.coordinator = lab.new_coordinator()
    lab.run(study_id)
    assert lab.values() == undisturbed.values()
    assert "lost" not in {a.state for a in lab.attempts()}


@pytest.mark.parametrize("hurried", [False, True])
def test_a_drain_ends_in_time_whatever_the_workers_do(
    make_lab: Callable[..., CoordinatorLab], hurried: bool
) -> None:
    drain_seconds = 600.0 if hurried else 0.05
    lab = with_settings(make_lab(), workers_end_with_coordinator=True, drain_seconds=drain_seconds)
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: lab.cluster.running == 3)
    lab.cluster.wedge(*lab.cluster.alive)
    stop, cut_short = threading.Event(), threading.Event()
    stop.set()
    if hurried:
        cut_short.set()
    lab.coordinator.run(stop, cut_short)
    assert lab.study(study_id).lease_owner is None
    assert {a.state for a in lab.attempts()} <= {"running", "dispatched"}


def test_other_coordinators_hand_back_at_once_and_their_workers_train_on(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: lab.cluster.running == 3)
    stop = threading.Event()
    stop.set()
    lab.coordinator.run(stop)
    assert lab.study(study_id).lease_owner is None
    assert lab.cluster.running == 3
    assert {a.state for a in lab.attempts()} <= {"running", "dispatched", "completed"}
