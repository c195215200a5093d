"""Whole studies through the real loop, SQL and Optuna, on a cluster that trains nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from search_spaces.parsing.document import parse_definition
from service import optuna_store
from service.coordinator.cluster.ray_workers import ClusterError
from service.coordinator.cluster.sent_verdicts import SentVerdicts
from service.coordinator.policy.placement import Placement
from service.coordinator.study import leased_study
from service.coordinator.study.snapshot_reader import limits_of, read_snapshot
from service.db.models import Attempt, Study
from service.optuna_store.studies import load_study, read_trials
from service.states import TERMINAL_STUDY_STATES, AttemptState, StudyState
from tests.support.service.coordinator import DEFINITION, GRID, CoordinatorLab, Killed
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

GRID_STUDY = {**DEFINITION, "search": GRID}


@pytest.mark.parametrize(
    "search", [DEFINITION["search"], {**DEFINITION["search"], "algorithm": "random"}, GRID]
)
def test_a_study_runs_exactly_its_trials_and_never_more_at_once_than_allowed(
    make_lab: Callable[..., CoordinatorLab], search: dict[str, Any]
) -> None:
    lab = make_lab(cpus=8)
    study_id = lab.submit(search=search)
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, lab.cluster.running)

    lab.run(study_id, each=look)
    study = lab.study(study_id)
    expected = 8 if search is GRID else 12
    why = f"all {expected} trials ended{': the grid is exhausted' * (search is GRID)}"
    assert (study.state, study.reason) == (StudyState.COMPLETED, why)
    assert [a.trial_number for a in lab.attempts()] == list(range(expected))
    assert len(lab.values()) == expected
    assert most == 3
    assert lab.cluster.alive == []


def test_every_grid_point_is_trained_exactly_once(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    lab.run(lab.submit(search=GRID))
    points = [(o.recipe.learning_rate, o.recipe.lora_r, o.recipe.epochs) for o in lab.cluster.orders]
    assert sorted(points) == sorted({(lr, r, e) for lr in (1e-4, 1e-3) for r in (4, 8) for e in (1, 2)})


def test_pruned_trials_end_pruned_with_a_reason_in_numbers(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(pruning={"algorithm": "median", "min_examples": 25, "n_startup_trials": 2}))
    pruned = [a for a in lab.attempts() if a.state == AttemptState.PRUNED]
    assert pruned
    assert all(
        "eval_loss" in a.reason and "at 25 examples" in a.reason for a in pruned if a.examples_seen == 25
    )
    assert all(lab.values()[a.trial_number][0] == "pruned" for a in pruned)


@pytest.mark.parametrize(("seed", "slots"), [(0, 1), (1, 3)])
def test_crashes_of_coordinators_and_workers_change_nothing(
    make_lab: Callable[..., CoordinatorLab], seed: int, slots: int
) -> None:
    """The same trials with the same values as an undisturbed run, each ended once."""
    calm = make_lab(cpus=1)
    search = {**DEFINITION["search"], "algorithm": "random"}
    budget = {"max_parallel_trials": 3, "max_retries": 1000}
    calm.run(calm.submit(search=search, budget=budget))
    stormy = make_lab(cpus=4 // slots, slots=slots)
    study_id = stormy.submit(search=search, budget=budget)
    dice = random.Random(seed)

    def disturb() -> None:
        roll = dice.random()
        if roll < 0.15:
            stormy.crash()
        elif roll < 0.25 and stormy.cluster.alive:
            stormy.cluster.kill(dice.choice(stormy.cluster.alive))

    stormy.run(study_id, each=disturb)
    assert stormy.study(study_id).state == StudyState.COMPLETED
    assert stormy.values() == calm.values()
    ends = [a.trial_number for a in stormy.attempts() if a.state != AttemptState.LOST]
    assert sorted(ends) == list(range(12))


def test_a_cancelled_study_ends_its_trials_and_its_workers(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit()
    for _ in range(4):
        lab.coordinator.round()
    with lab.database.write() as session:
        session.get_one(Study, study_id).cancel_requested = True
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.CANCELLED
    assert {a.state for a in lab.attempts()} == {AttemptState.CANCELLED}
    assert lab.cluster.alive == []


def test_a_fault_in_the_data_fails_the_study_with_the_worker_s_sentence(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    def bad(order: TrialOrder) -> TrialOutcome:
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.FAILED,
            reason="/t.jsonl:7: the field 'completion' is missing",
            fatal_to_study=True,
        )

    lab = make_lab(ending=bad)
    study_id = lab.submit()
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.reason) == (
        StudyState.FAILED,
        "/t.jsonl:7: the field 'completion' is missing",
    )


def test_a_study_that_no_node_can_hold_fails_and_says_what_it_needed(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(resources={"gpus_per_worker": 1})
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.FAILED
    assert "1 GPU" in study.reason


def test_studies_share_the_cluster_in_the_order_they_came(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=2)
    short = {**DEFINITION["search"], "trials": 6}
    first, second = lab.submit(name="a", search=short), lab.submit(name="b", search=short)
    lab.run(first, second)
    assert [lab.study(s).state for s in (first, second)] == [StudyState.COMPLETED] * 2
    assert lab.study(first).ended_at < lab.study(second).ended_at  # type: ignore[operator]


def test_a_fault_of_ours_fails_the_study_that_met_it_and_no_other(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    bad, good = lab.submit(name="bad"), lab.submit(name="good")
    ask = optuna_store.ask

    def broken_ask(study: Any, definition: Any, *more: Any) -> Any:
        if definition.name == "bad":
            raise ZeroDivisionError("a bug")
        return ask(study, definition, *more)

    monkeypatch.setattr(optuna_store, "ask", broken_ask)
    lab.run(bad, good)
    assert lab.study(bad).state == StudyState.FAILED
    assert "ZeroDivisionError: a bug" in lab.study(bad).reason
    assert lab.study(good).state == StudyState.COMPLETED
    assert lab.cluster.alive == []


def test_a_fault_of_ours_leaves_no_trial_running_in_optuna(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()

    def broken_report(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(optuna_store, "report", broken_report)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.FAILED
    trials = read_trials(lab.storage, "s")
    assert [(t.state, t.user_attrs["outcome"]) for t in trials] == [("fail", "cancelled")] * 3


def test_trouble_with_the_cluster_fails_no_study(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()

    def no_answer(_: Any) -> int:
        raise ClusterError("the head does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(lab.cluster, "capacity_left", no_answer)
        with pytest.raises(ClusterError):
            lab.coordinator.round()
    lab.crash()
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_stored_definition_that_cannot_be_read_fails_its_study_and_no_other(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    bad, good = lab.submit(name="bad"), lab.submit(name="good")
    with lab.database.write() as session:
        study = session.get_one(Study, bad)
        study.definition = {**study.definition, "from_the_future": 1}
    lab.run(bad, good)
    assert lab.study(bad).state == StudyState.FAILED
    assert "from_the_future" in lab.study(bad).reason
    assert lab.study(good).state == StudyState.COMPLETED


def test_a_stored_definition_that_makes_no_recipe_fails_its_study_and_kills_no_coordinator(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(repeats={"top_k": 1})
    with lab.database.write() as session:
        study = session.get_one(Study, study_id)
        study.definition = {**study.definition, "recipe": {"a_field_of_the_past": 1}}
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.FAILED
    assert "a_field_of_the_past" in lab.study(study_id).reason


def test_half_done_studies_are_taken_up_again_before_and_beyond_new_ones(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """Their workers hold the cluster, for which new studies taken in their place would wait."""
    lab = make_lab(cpus=2)
    short = {**DEFINITION["search"], "algorithm": "random", "trials": 4}
    many = lab.settings.max_running_studies
    half_done = [lab.submit(name=f"old-{i}", search=short) for i in range(many)]
    for _ in range(4):
        lab.coordinator.round()
    assert {lab.study(s).state for s in half_done} == {StudyState.RUNNING}
    new = [lab.submit(name=f"new-{i}", search=short) for i in range(many)]
    lab.cluster.lose_connection()
    lab.coordinator = lab.new_coordinator()
    lab.coordinator.round()  # the leases have not run out yet
    assert [lab.study(s).state for s in new] == [StudyState.RUNNING] * len(new)
    with lab.database.write() as session:
        for study_id in half_done:
            study = session.get_one(Study, study_id)
            study.lease_expires_at = study.created_at
    lab.run(*half_done, *new)
    assert {lab.study(s).state for s in (*half_done, *new)} == {StudyState.COMPLETED}


def test_attempts_that_never_trained_cost_no_gpu_hours(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**DEFINITION["search"], "trials": 2}, budget={"max_gpu_hours": 1})
    lab.rounds(lambda: bool(lab.attempts()))
    [runner] = lab.runners
    now = datetime.now(UTC)
    spans = [(None, now - timedelta(hours=5)), (now - timedelta(minutes=90), now - timedelta(minutes=30))]
    with lab.database.write() as session:
        for ordinal, (started_at, ended_at) in enumerate(spans, 2):
            session.add(
                Attempt(
                    study_id=study_id,
                    trial_number=0,
                    ordinal=ordinal,
                    worker_id="w",
                    artifact_dir="/a",
                    gpus=1.0,
                    state=AttemptState.LOST,
                    started_at=started_at,
                    ended_at=ended_at,
                )
            )
    sent = SentVerdicts(stop_grace=1.0, pause_grace=1.0)
    snapshot = read_snapshot(runner.study, limits_of(runner.study), sent, placement=Placement())
    assert snapshot.gpu_hours == pytest.approx(1.0)


def test_the_workers_are_gone_when_a_coordinator_dies_while_it_ends_a_study(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**DEFINITION["search"], "trials": 2})
    advance_study = leased_study.advance_study

    def dies(session: Any, study: Any, to: StudyState, reason: str) -> None:
        if to in TERMINAL_STUDY_STATES:
            raise OperationalError("the database went away", None, Exception())
        advance_study(session, study, to, reason)

    with monkeypatch.context() as broken:
        broken.setattr(leased_study, "advance_study", dies)
        with pytest.raises(OperationalError):
            lab.run(study_id)
    assert lab.cluster.alive == []
    lab.crash()
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED


@pytest.mark.parametrize("dies", [False, True])
def test_a_coordinator_that_asks_after_its_lease_ran_out_takes_no_grid_point_away(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """Two ask at the same moment: one trial is the study's and the other is nobody's, told of or not."""
    lab = make_lab()
    study_id = lab.submit(search=GRID)
    lab.rounds(lambda: len(lab.attempts()) >= 2)
    study, definition = load_study(lab.storage, "s"), parse_definition(GRID_STUDY)
    create, tell = type(study._storage).create_new_trial, type(study).tell
    present = len(study.trials)

    def create_after_a_rival(storage: Any, number: int, template_trial: Any = None) -> int:
        monkeypatch.setattr(type(study._storage), "create_new_trial", create)
        optuna_store.ask(study, definition)
        return create(storage, number, template_trial=template_trial)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(type(study._storage), "create_new_trial", create_after_a_rival)
    if dies:
        monkeypatch.setattr(type(study), "tell", die)
        with pytest.raises(Killed):
            optuna_store.ask(study, definition)
    else:
        optuna_store.ask(study, definition)
    monkeypatch.setattr(type(study), "tell", tell)

    lab.crash()
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    trained = [a.trial_number for a in lab.attempts()]
    assert sorted(trained) == sorted(set(range(9)) - {present + 1})
    points = [(o.recipe.learning_rate, o.recipe.lora_r, o.recipe.epochs) for o in lab.cluster.orders]
    assert len(set(points)) == 8
    assert set(lab.values()) == set(trained)


def test_a_trial_that_was_asked_for_behind_ones_back_is_run_and_counted(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=GRID)
    lab.rounds(lambda: len(lab.attempts()) >= 2)
    optuna_store.ask(load_study(lab.storage, "s"), parse_definition(GRID_STUDY))
    lab.run(study_id)
    assert sorted(a.trial_number for a in lab.attempts()) == list(range(8))
    assert set(lab.values()) == set(range(8))
