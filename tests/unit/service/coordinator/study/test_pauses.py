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
from tests.support.service.coordinator import DEFINITION, GRID, House

RANDOM = {
    **DEFINITION["search"],
    "algorithm": "random",
    # Of different lengths, so that some run while others end.
    "space": {**DEFINITION["search"]["space"], "epochs": {"choices": [1, 2, 3]}},
}


def pause(house: House, study_id: str) -> None:
    with house.database.write() as session:
        request_pause(session, study_id)


def resume(house: House, study_id: str) -> None:
    with house.database.write() as session:
        request_resume(session, study_id)


def cancel(house: House, study_id: str) -> None:
    with house.database.write() as session:
        request_cancel(session, study_id)


def change(house: House, study_id: str, **columns: Any) -> None:
    with house.database.write() as session:
        study = session.get_one(Study, study_id)
        for name, value in columns.items():
            setattr(study, name, value)


def is_in(house: House, study_id: str, state: StudyState) -> Callable[[], bool]:
    return lambda: house.study(study_id).state == state


def run_to_pause(house: House, study_id: str) -> None:
    pause(house, study_id)
    house.rounds(is_in(house, study_id, StudyState.PAUSED))


def with_settings(house: House, **changes: Any) -> House:
    house.settings = house.settings.model_copy(update=changes)
    house.coordinator = house.new_coordinator()
    return house


# -- pause and resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "parallel", "seed"),
    [({**RANDOM, "trials": 8}, 3, 1), (GRID, 3, 2), ({**DEFINITION["search"], "trials": 6}, 1, 3)],
    ids=["random", "grid", "tpe"],
)
def test_a_study_that_is_paused_again_and_again_ends_as_the_undisturbed_one(
    make_house: Callable[..., House], search: dict[str, Any], parallel: int, seed: int
) -> None:
    study = {"search": search, "budget": {"max_parallel_trials": parallel}}
    undisturbed, house = make_house(), make_house()
    undisturbed.run(undisturbed.submit(**study))
    dice = random.Random(seed)
    study_id, pauses = house.submit(**study), 0

    def perhaps() -> None:
        nonlocal pauses
        now = house.study(study_id)
        if now.state == StudyState.PAUSED:
            if dice.random() < 0.5:
                resume(house, study_id)
        elif not now.pause_requested and dice.random() < 0.15:
            pause(house, study_id)
            pauses += 1

    house.run(study_id, each=perhaps)
    assert pauses > 0
    assert house.values() == undisturbed.values()
    assert house.rungs() == undisturbed.rungs()
    assert house.study(study_id).reason == undisturbed.study(undisturbed.attempts()[0].study_id).reason
    states = [a.state for a in house.attempts()]
    assert "paused" in states
    assert "lost" not in states


def test_a_grid_is_gone_over_once_across_pauses_and_deaths(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house()
    study_id = house.submit(search=GRID)
    house.rounds(lambda: len(house.attempts()) > 3)
    run_to_pause(house, study_id)
    resume(house, study_id)
    pause(house, study_id)
    assert house.study(study_id).state == StudyState.PAUSED
    resume(house, study_id)
    house.run_through_deaths(study_id, random.Random(5), monkeypatch)
    values = house.values()
    assert len(values) == 8
    assert len({tuple(sorted(params.items())) for _, _, params in values.values()}) == 8
    assert {outcome for outcome, _, _ in values.values()} == {"completed"}


def test_a_paused_study_holds_no_worker_no_lease_and_no_place(make_house: Callable[..., House]) -> None:
    house = with_settings(make_house(), max_running_studies=1)
    study_id = house.submit()
    house.rounds(lambda: house.cluster.running == 3)
    run_to_pause(house, study_id)
    study = house.study(study_id)
    assert (study.reason, study.lease_owner, study.pause_requested) == ("paused on request", None, False)
    assert house.cluster.alive == []
    assert [a.state for a in house.attempts()][-3:] == ["paused"] * 3
    assert {a.reason for a in house.attempts() if a.state == "paused"} == {"paused on request"}
    other = house.submit(name="other")
    house.run(other)
    assert house.study(study_id).state == StudyState.PAUSED
    resume(house, study_id)
    assert (house.study(study_id).state, house.study(study_id).paused_at) == (StudyState.QUEUED, None)
    house.run(study_id)
    kinds = ["pause_requested", "study_paused", "study_queued"]
    assert [house.events(kind)[-1] for kind in kinds] == [
        "a pause was requested over REST",
        "paused on request",
        "resumed; waiting for a coordinator",
    ]


def test_a_trial_that_the_pruner_has_decided_against_is_pruned_and_not_put_down(
    make_house: Callable[..., House],
) -> None:
    house = make_house(cpus=1)
    study_id = house.submit(
        search={**RANDOM, "trials": 6},
        pruning={"algorithm": "threshold", "upper": 0.0, "min_examples": 25},
        budget={"max_parallel_trials": 1},
    )
    house.rounds(lambda: any(a.verdict_reason for a in house.attempts()))
    run_to_pause(house, study_id)
    decided = [a for a in house.attempts() if a.verdict_reason]
    assert {a.state for a in decided} == {"pruned"}
    resume(house, study_id)
    house.run(study_id)
    assert len(house.values()) == 6


def test_a_pause_is_taken_back_while_it_is_under_way(make_house: Callable[..., House]) -> None:
    house = make_house()
    study_id = house.submit()
    house.rounds(lambda: house.cluster.running == 3)
    pause(house, study_id)
    house.coordinator.round()
    assert house.study(study_id).state == StudyState.RUNNING
    resume(house, study_id)
    house.run(study_id)
    assert house.events("study_paused") == []
    assert house.events("resume_requested") == ["the pause was cancelled before the study was paused"]
    assert len(house.values()) == 12


def test_a_queued_study_is_paused_at_once_and_has_not_begun_when_it_is_resumed(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    study_id = house.submit()
    pause(house, study_id)
    assert house.study(study_id).state == StudyState.PAUSED
    for _ in range(3):
        house.coordinator.round()
    assert (house.study(study_id).state, house.attempts()) == (StudyState.PAUSED, [])
    resume(house, study_id)
    house.run(study_id)
    assert house.study(study_id).paused_seconds == 0.0


def test_asking_again_changes_nothing(make_house: Callable[..., House]) -> None:
    house = make_house()
    study_id = house.submit()
    house.rounds(lambda: house.cluster.running == 3)
    resume(house, study_id)
    pause(house, study_id)
    revision = house.study(study_id).revision
    pause(house, study_id)
    assert house.study(study_id).revision == revision
    house.rounds(is_in(house, study_id, StudyState.PAUSED))
    revision = house.study(study_id).revision
    pause(house, study_id)
    assert house.study(study_id).revision == revision
    assert len(house.events("pause_requested")) == 1
    assert house.events("resume_requested") == []


def test_repeats_go_on_after_a_pause_as_if_there_had_been_none(make_house: Callable[..., House]) -> None:
    study = {"search": {**RANDOM, "trials": 4}, "repeats": {"top_k": 2, "seeds": 2}}
    undisturbed, house = make_house(), make_house()
    undisturbed.run(undisturbed.submit(**study))
    study_id = house.submit(**study)
    house.rounds(lambda: len(house.attempts()) > 5)
    run_to_pause(house, study_id)
    resume(house, study_id)
    house.run(study_id)
    assert house.values() == undisturbed.values()
    assert house.study(study_id).reason.endswith("run again with 2 seeds each")


# -- workers that do not obey -------------------------------------------------------------------------


def test_a_wedged_worker_is_killed_and_its_trial_goes_on_from_its_last_checkpoint(
    make_house: Callable[..., House],
) -> None:
    undisturbed = make_house()
    undisturbed.run(undisturbed.submit(search=RANDOM))
    house = with_settings(make_house(), pause_grace_seconds=0.02)
    study_id = house.submit(search=RANDOM)
    house.rounds(lambda: house.cluster.running == 3)
    wedged = house.cluster.alive[0]
    house.cluster.wedge(wedged)
    pause(house, study_id)
    house.rounds(is_in(house, study_id, StudyState.PAUSED), limit=2000)
    [left] = [a for a in house.attempts() if a.worker_id == wedged and a.state == AttemptState.PAUSED]
    assert left.reason == (
        "paused on request; its worker did not obey within 0.02 s and was killed; the trial resumes from its"
        " last checkpoint"
    )
    assert house.cluster.alive == []
    resume(house, study_id)
    house.run(study_id)
    assert house.values() == undisturbed.values()


def test_a_cancel_ends_although_a_worker_is_wedged(make_house: Callable[..., House]) -> None:
    house = with_settings(make_house(), stop_grace_seconds=0.02)
    study_id = house.submit(search=RANDOM)
    house.rounds(lambda: house.cluster.running == 3)
    house.cluster.wedge(house.cluster.alive[0])
    cancel(house, study_id)
    house.rounds(is_in(house, study_id, StudyState.CANCELLED), limit=2000)
    assert house.cluster.alive == []
    assert {outcome for outcome, _, _ in house.values().values()} <= {"completed", "cancelled"}
    reasons = [a.reason for a in house.attempts() if a.state == AttemptState.CANCELLED]
    assert sum("did not obey within 0.02 s and was killed" in reason for reason in reasons) == 1


# -- cancel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
def test_a_paused_study_is_cancelled_with_its_trials_though_no_place_is_free(
    make_house: Callable[..., House], resumed: bool
) -> None:
    house = with_settings(make_house(), max_running_studies=1)
    study_id = house.submit()
    house.rounds(lambda: house.cluster.running == 3)
    run_to_pause(house, study_id)
    blocker = house.submit(name="blocker")
    house.rounds(is_in(house, blocker, StudyState.RUNNING))
    if resumed:
        resume(house, study_id)
    cancel(house, study_id)
    house.rounds(is_in(house, study_id, StudyState.CANCELLED), limit=5)
    assert house.study(blocker).state == StudyState.RUNNING
    states = {trial.state for trial in read_trials(house.storage, "s")}
    assert "running" not in states
    assert "cancelled" in {outcome for outcome, _, _ in house.values().values()}


def test_a_study_that_was_paused_before_it_began_is_cancelled_like_a_queued_one(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    study_id = house.submit()
    pause(house, study_id)
    cancel(house, study_id)
    house.coordinator.round()
    assert house.study(study_id).reason == "cancelled on request before it started"


# -- times --------------------------------------------------------------------------------------------


def test_at_dawn_a_study_is_paused_and_when_resumed_runs_until_the_next_one(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    until = {"until": "06:00", "until_timezone": "Europe/Berlin", "max_parallel_trials": 3}
    study_id = house.submit(budget=until)
    house.rounds(lambda: house.cluster.running == 3)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    change(house, study_id, started_at=yesterday)
    house.rounds(is_in(house, study_id, StudyState.PAUSED))
    dawn = house.study(study_id).reason
    six = yesterday.astimezone(ZoneInfo("Europe/Berlin")).replace(hour=6, minute=0)
    if six <= yesterday:
        six += timedelta(days=1)
    assert dawn == f"budget.until 06:00 Europe/Berlin reached ({six:%Y-%m-%d %H:%M %Z})"
    assert house.cluster.alive == []
    resume(house, study_id)
    house.run(study_id)
    assert house.study(study_id).state == StudyState.COMPLETED


def test_a_study_that_is_taken_up_after_the_next_dawn_is_put_down_again(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    study_id = house.submit(budget={"until": "06:00", "max_parallel_trials": 3})
    house.rounds(lambda: house.cluster.running == 3)
    run_to_pause(house, study_id)
    resume(house, study_id)
    change(house, study_id, resumed_at=datetime.now(UTC) - timedelta(days=1))
    change(house, study_id, started_at=datetime.now(UTC) - timedelta(days=2))
    house.rounds(is_in(house, study_id, StudyState.PAUSED))
    assert house.study(study_id).reason.startswith("budget.until 06:00 UTC reached")


def test_a_dawn_may_end_a_study_instead(make_house: Callable[..., House]) -> None:
    house = make_house()
    study_id = house.submit(
        search=RANDOM, budget={"until": "06:00", "until_action": "end", "max_parallel_trials": 3}
    )
    house.rounds(lambda: any(a.state == "completed" for a in house.attempts()))
    change(house, study_id, started_at=datetime.now(UTC) - timedelta(days=1))
    house.run(study_id)
    study = house.study(study_id)
    assert study.state == StudyState.COMPLETED
    assert study.reason.startswith("budget.until 06:00 UTC reached")


@pytest.mark.parametrize("waited", ["paused_at", "resumed_at"])
def test_the_timeout_counts_neither_the_pause_nor_the_wait_after_it(
    make_house: Callable[..., House], waited: str
) -> None:
    house = make_house()
    study_id = house.submit(budget={"timeout": "1h", "max_parallel_trials": 3})
    house.rounds(lambda: house.cluster.running == 3)
    run_to_pause(house, study_id)
    hours = timedelta(hours=2)
    with house.database.write() as session:
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
    house.run(study_id)
    study = house.study(study_id)
    assert study.reason == "all 12 trials ended"
    assert study.paused_seconds == pytest.approx(7200, abs=60)


# -- range tests --------------------------------------------------------------------------------------


def test_a_study_that_waits_for_its_range_test_is_paused_with_it(make_house: Callable[..., House]) -> None:
    house = make_house()
    search = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 30}}
    study_id = house.submit(search=search)
    house.rounds(lambda: house.cluster.running > 0)
    test_id = str(house.study(study_id).range_test_id)
    pause(house, study_id)
    assert house.study(study_id).state == StudyState.PAUSED
    house.rounds(is_in(house, test_id, StudyState.PAUSED))
    for _ in range(5):
        house.coordinator.round()
    assert house.study(study_id).state == StudyState.PAUSED
    assert house.study(study_id).preparation is None
    resume(house, study_id)
    assert house.study(test_id).state == StudyState.QUEUED
    assert house.study(study_id).reason.startswith("resumed; waiting for its learning-rate range test")
    house.run(study_id)
    assert house.study(test_id).state == StudyState.COMPLETED
    assert house.study(study_id).state == StudyState.COMPLETED


def test_a_range_test_that_is_paused_by_itself_holds_its_study_up_until_it_is_resumed(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    search = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 30}}
    study_id = house.submit(search=search)
    house.rounds(lambda: house.study(study_id).range_test_id is not None)
    test_id = str(house.study(study_id).range_test_id)
    run_to_pause(house, test_id)
    for _ in range(5):
        house.coordinator.round()
    assert house.study(study_id).state == StudyState.QUEUED
    resume(house, test_id)
    house.run(study_id)
    assert house.study(study_id).state == StudyState.COMPLETED


def test_a_paused_study_and_its_range_test_are_cancelled_together(make_house: Callable[..., House]) -> None:
    house = make_house()
    search = {**DEFINITION["search"], "learning_rate_range_test": {"steps": 30}}
    study_id = house.submit(search=search)
    house.rounds(lambda: house.cluster.running > 0)
    test_id = str(house.study(study_id).range_test_id)
    pause(house, study_id)
    house.rounds(is_in(house, test_id, StudyState.PAUSED))
    cancel(house, study_id)
    house.rounds(is_in(house, test_id, StudyState.CANCELLED))
    assert house.study(study_id).state == StudyState.CANCELLED


# -- deaths -------------------------------------------------------------------------------------------


def test_pauses_survive_coordinators_that_die_at_any_write(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, house = make_house(), make_house()
    undisturbed.run(undisturbed.submit(search=RANDOM))
    study_id = house.submit(search=RANDOM)
    dice = random.Random(11)
    round_of = type(house.coordinator).round

    def with_pauses(coordinator: Any) -> None:
        state = house.study(study_id).state
        if state == StudyState.PAUSED:
            resume(house, study_id)
        elif state in (StudyState.RUNNING, StudyState.QUEUED) and dice.random() < 0.05:
            pause(house, study_id)
        round_of(coordinator)

    monkeypatch.setattr(type(house.coordinator), "round", with_pauses)
    deaths = house.run_through_deaths(study_id, random.Random(3), monkeypatch)
    assert deaths > 3
    assert len(house.events("study_paused")) > 2
    assert house.values() == undisturbed.values()


# -- draining -----------------------------------------------------------------------------------------


def test_a_coordinator_whose_workers_end_with_it_has_their_trials_put_down(
    make_house: Callable[..., House],
) -> None:
    undisturbed = make_house()
    undisturbed.run(undisturbed.submit(search=RANDOM))
    house = with_settings(make_house(), workers_end_with_coordinator=True)
    study_id = house.submit(search=RANDOM)
    house.rounds(lambda: house.cluster.running == 3)
    stop = threading.Event()
    stop.set()
    house.coordinator.run(stop)
    study = house.study(study_id)
    assert (study.state, study.lease_owner) == (StudyState.RUNNING, None)
    assert [a.state for a in house.attempts()][-3:] == ["paused"] * 3
    assert house.attempts()[-1].reason == "the service is ending, and its workers with it"
    for worker_id in house.cluster.alive:
        house.cluster.kill(worker_id)
    house.cluster.lose_connection()
    house.coordinator = house.new_coordinator()
    house.run(study_id)
    assert house.values() == undisturbed.values()
    assert "lost" not in {a.state for a in house.attempts()}


@pytest.mark.parametrize("hurried", [False, True])
def test_a_drain_ends_in_time_whatever_the_workers_do(
    make_house: Callable[..., House], hurried: bool
) -> None:
    drain_seconds = 600.0 if hurried else 0.05
    house = with_settings(make_house(), workers_end_with_coordinator=True, drain_seconds=drain_seconds)
    study_id = house.submit(search=RANDOM)
    house.rounds(lambda: house.cluster.running == 3)
    house.cluster.wedge(*house.cluster.alive)
    stop, cut_short = threading.Event(), threading.Event()
    stop.set()
    if hurried:
        cut_short.set()
    house.coordinator.run(stop, cut_short)
    assert house.study(study_id).lease_owner is None
    assert {a.state for a in house.attempts()} <= {"running", "dispatched"}


def test_other_coordinators_hand_back_at_once_and_their_workers_train_on(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    study_id = house.submit(search=RANDOM)
    house.rounds(lambda: house.cluster.running == 3)
    stop = threading.Event()
    stop.set()
    house.coordinator.run(stop)
    assert house.study(study_id).lease_owner is None
    assert house.cluster.running == 3
    assert {a.state for a in house.attempts()} <= {"running", "dispatched", "completed"}
