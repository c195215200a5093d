"""What comes before a study's first trial, through the real loop, SQL and Optuna: range test, warm start.

One file, because both are stages of one chore, tested in one lab.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from sqlalchemy import select

from search_spaces.parsing.document import parse_definition
from search_spaces.preparation import Preparation
from search_spaces.range_tests.analysis import in_bounds
from service.coordinator.chores import preparation
from service.db.kinds import StudyKind
from service.db.models import Schedule, Study
from service.optuna_store.studies import find_study_number, read_trials
from service.states import TERMINAL_STUDY_STATES, AttemptState, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

SEARCH = {**DEFINITION["search"], "algorithm": "random", "trials": 4}
TESTED = {**SEARCH, "learning_rate_range_test": True}


def search(**changes: Any) -> dict[str, Any]:
    return {**SEARCH, **changes}


def child(lab: CoordinatorLab, study_id: str) -> Study:
    """The range test of a study."""
    test_id = lab.study(study_id).range_test_id
    assert test_id is not None
    return lab.study(test_id)


def stored_preparation(lab: CoordinatorLab, study_id: str) -> Preparation:
    return Preparation.model_validate(lab.study(study_id).preparation)


def figure(lab: CoordinatorLab, name: str) -> dict[str, Any]:
    """The range test's figure on a study's dashboard page, as the dashboard reads it."""
    number = find_study_number(lab.storage, name)
    assert number is not None
    found = get_plotly_graph_objects(lab.storage.get_study_system_attrs(number))
    drawn: dict[str, Any] = json.loads(found[preparation.FIGURE])
    return drawn


def test_a_study_waits_for_its_range_test_and_searches_what_it_found(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=TESTED)
    lab.rounds(lambda: lab.study(study_id).range_test_id is not None)
    test = child(lab, study_id)
    assert (test.name, test.kind) == ("s.range-test", StudyKind.RANGE_TEST)
    assert lab.study(study_id).reason == "waiting for its learning-rate range test s.range-test"
    lab.run(study_id)
    assert child(lab, study_id).state == StudyState.COMPLETED
    sweeps = [o for o in lab.cluster.orders if o.study_id == test.id]
    assert sorted(o.recipe.lora_r for o in sweeps) == [4, 8]
    assert all(o.rate_sweep is not None for o in sweeps)
    bounds = stored_preparation(lab, study_id).learning_rate_bounds
    assert bounds is not None
    low, high = bounds
    assert 1e-5 < low < 1e-3 < high < 1e-1  # the fake's curves are steepest at 1e-3 and 2e-3
    trials = [o for o in lab.cluster.orders if o.study_id == study_id]
    assert len(trials) == 4
    assert all(low <= o.recipe.learning_rate <= high for o in trials)
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_every_step_of_a_range_test_is_told_in_words(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=TESTED)
    lab.run(study_id)
    begun, read, narrowed = lab.events(preparation.RANGE_TEST)
    assert begun == "the range test s.range-test sweeps its learning rate first"
    bounds = in_bounds(stored_preparation(lab, study_id).learning_rate_bounds or (0.0, 0.0))
    assert read.startswith(f"learning_rate narrowed from 1e-5…1e-1 to {bounds}; the lower bound is ")
    said = (
        f"learning_rate narrowed from 1e-5…1e-1 to {bounds} by the range test s.range-test: the lower bound"
    )
    assert narrowed.startswith(said)
    assert narrowed.count(bounds) == 1
    assert "(batch 16, rank 4: steepest at " in narrowed
    assert ", diverged at " in narrowed
    assert stored_preparation(lab, study_id).notes == (narrowed,)


def test_the_curves_are_on_both_dashboard_pages(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=TESTED)
    lab.run(study_id)
    for name in ("s", "s.range-test"):
        drawn = figure(lab, name)
        assert drawn["layout"]["xaxis"]["type"] == "log"
        assert [t["name"] for t in drawn["data"] if "name" in t] == ["batch 16, rank 4", "batch 16, rank 8"]
        (shade,) = drawn["layout"]["shapes"]
        assert [shade["x0"], shade["x1"]] == list(
            stored_preparation(lab, study_id).learning_rate_bounds or ()
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_crash_at_any_round_changes_nothing(make_lab: Callable[..., CoordinatorLab], seed: int) -> None:
    calm = make_lab(cpus=1)
    calm_id = calm.submit(search=TESTED)
    calm.run(calm_id)
    stormy = make_lab(cpus=1)
    study_id = stormy.submit(search=TESTED, budget={"max_parallel_trials": 3, "max_retries": 1000})
    count = iter(range(10_000))

    def disturb() -> None:
        if next(count) % 4 == seed:
            stormy.crash()

    stormy.run(study_id, each=disturb)
    assert stored_preparation(stormy, study_id) == stored_preparation(calm, calm_id)
    assert stormy.values() == calm.values()
    with stormy.database.read() as session:
        assert len(session.scalars(select(Study)).all()) == 2


@pytest.mark.parametrize("fatal", ["make", "save_figure", "append_event"])
def test_a_coordinator_that_dies_in_the_middle_of_a_step_is_followed_by_one_that_takes_it(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, fatal: str
) -> None:
    """The step's transaction is undone, or what it wrote to Optuna is written again."""
    lab = make_lab()
    study_id = lab.submit(search=TESTED)
    real = getattr(preparation, fatal)
    deaths = 0

    def die(*arguments: Any, **options: Any) -> Any:
        nonlocal deaths
        done = real(*arguments, **options)
        if deaths < 2:
            deaths += 1
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(preparation, fatal, die)
    for _ in range(300):
        if lab.study(study_id).state in TERMINAL_STUDY_STATES:
            break
        try:
            lab.coordinator.round()
        except KeyboardInterrupt:
            lab.crash()
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert deaths == 2
    assert len(lab.events(preparation.RANGE_TEST)) == 3
    with lab.database.read() as session:
        assert len(session.scalars(select(Study)).all()) == 2


def test_a_range_test_that_fails_fails_its_study_with_the_reason(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    def bad(order: TrialOrder) -> TrialOutcome:
        reason = "/t.jsonl:7: the field 'completion' is missing"
        return TrialOutcome(
            attempt_id=order.attempt_id, status=OutcomeStatus.FAILED, reason=reason, fatal_to_study=True
        )

    lab = make_lab(ending=bad)
    study_id = lab.submit(search=TESTED)
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.reason) == (
        StudyState.FAILED,
        "its range test 's.range-test' failed: /t.jsonl:7: the field 'completion' is missing",
    )


def test_cancelling_a_study_cancels_its_range_test(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=TESTED)
    lab.rounds(lambda: len(lab.attempts()) > 0)
    with lab.database.write() as session:
        session.get_one(Study, study_id).cancel_requested = True
    lab.run(study_id, child(lab, study_id).id)
    assert lab.study(study_id).state == StudyState.CANCELLED
    assert child(lab, study_id).state == StudyState.CANCELLED
    assert {a.state for a in lab.attempts()} <= {AttemptState.CANCELLED, AttemptState.COMPLETED}


def test_cancelling_a_range_test_fails_the_study_that_waits_for_it(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=TESTED)
    lab.rounds(lambda: lab.study(study_id).range_test_id is not None)
    with lab.database.write() as session:
        session.get_one(Study, lab.study(study_id).range_test_id).cancel_requested = True
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.FAILED
    assert study.reason.startswith("its range test 's.range-test' was cancelled: ")


def test_what_was_found_outside_the_space_leaves_it_as_it_is(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    space = {**DEFINITION["search"]["space"], "learning_rate": {"min": 1e-6, "max": 1e-5, "scale": "log"}}
    study_id = lab.submit(search={**TESTED, "space": space})
    lab.run(study_id)
    assert stored_preparation(lab, study_id).learning_rate_bounds is None
    (note,) = stored_preparation(lab, study_id).notes
    assert note.startswith("learning_rate stays 1e-6…1e-5: the range test proposes ")
    rates = [o.recipe.learning_rate for o in lab.cluster.orders if o.study_id == study_id]
    assert len(rates) == 4
    assert all(1e-6 <= rate <= 1e-5 for rate in rates)


def test_a_range_test_that_may_widen_moves_the_bounds(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    space = {**DEFINITION["search"]["space"], "learning_rate": {"min": 1e-6, "max": 1e-5, "scale": "log"}}
    tested = {**TESTED, "space": space, "learning_rate_range_test": {"widen": True}}
    study_id = lab.submit(search=tested)
    lab.run(study_id)
    bounds = stored_preparation(lab, study_id).learning_rate_bounds
    assert bounds is not None
    assert bounds[0] > 1e-5
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_fault_in_one_study_s_stages_fails_it_and_no_other(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    bad, good = lab.submit(name="bad", search=TESTED), lab.submit(name="good", search=TESTED)
    real = preparation.make

    def fail(session: Any, definition: Any, why: str, **rest: Any) -> Study:
        if definition.name == "bad":
            raise ZeroDivisionError("of ours")
        return real(session, definition, why, **rest)

    monkeypatch.setattr(preparation, "make", fail)
    lab.run(bad, good)
    assert lab.study(bad).state == StudyState.FAILED
    assert lab.study(bad).reason.endswith("ZeroDivisionError: of ours")
    assert lab.study(good).state == StudyState.COMPLETED


# -- warm start ------------------------------------------------------------------------------------------


def enqueue(source: str, **more: Any) -> dict[str, Any]:
    return {"from": source, "as": "enqueue", **more}


def test_the_best_earlier_recipes_are_evaluated_first(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    first = lab.submit(name="a", search=SEARCH)
    lab.run(first)
    earlier = [t for t in read_trials(lab.storage, "a") if t.value is not None]
    best = sorted(earlier, key=lambda trial: trial.value or 0.0)[:3]
    second = lab.submit(name="s", warm_start=enqueue("a", top_k=3), search=search(seed=1))
    lab.run(second)
    trials = read_trials(lab.storage, "s")
    assert [dict(t.params) for t in trials[:3]] == [dict(t.params) for t in best]
    assert len(trials) == 4
    (note,) = lab.events(preparation.WARM_START)
    assert note.startswith(
        f"warm start from the study 'a': its 3 best recipes are evaluated first, trials {best[0].number} ("
    )


def test_recipes_outside_the_space_are_left_out_and_named(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    both = {"learning_rate": {"choices": [1e-4, 1e-3]}, "lora_r": {"choices": [4, 8]}}
    lab.run(lab.submit(name="a", search={"algorithm": "grid", "space": both}))
    space = {**DEFINITION["search"]["space"], "lora_r": {"choices": [4]}}
    second = lab.submit(name="s", warm_start=enqueue("a", top_k=4), search=search(space=space))
    lab.run(second)
    wide = [t for t in read_trials(lab.storage, "a") if t.params["lora_r"] == 8]
    found = stored_preparation(lab, second)
    assert len(wide) == 2
    assert len(found.enqueued) == 2
    assert all(point["lora_r"] == 4 for point in found.enqueued)
    assert f"trial {wide[0].number}: lora_r 8 is not one of the choices" in " ".join(found.notes)


def test_what_this_study_fixes_otherwise_is_said(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(name="a", search=SEARCH))
    second = lab.submit(
        name="s", warm_start=enqueue("a", top_k=1), search=SEARCH, recipe={"lora_dropout": 0.25}
    )
    lab.run(second)
    assert "evaluated with this study's fixed values: lora_dropout 0.25 instead of 0.0" in lab.events(
        preparation.WARM_START
    )
    assert all(o.recipe.lora_dropout == 0.25 for o in lab.cluster.orders if o.study_id == second)


def test_a_prior_teaches_the_sampler_from_its_first_trial(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(name="a", search=search(trials=8)))
    second = lab.submit(
        name="s", warm_start={"from": "a", "as": "prior"}, search=search(algorithm="tpe", trials=3, seed=5)
    )
    lab.run(second)
    found = stored_preparation(lab, second)
    assert len(found.prior) == 8
    assert found.notes == ("warm start from the study 'a': 8 results are given to the sampler",)
    trials = read_trials(lab.storage, "s")
    assert len(trials) == 3  # those of the prior are none of its own
    cold = make_lab(cpus=1)
    cold.run(cold.submit(name="s", search=search(algorithm="tpe", trials=3, seed=5)))
    assert dict(trials[0].params) != dict(read_trials(cold.storage, "s")[0].params)


def test_a_prior_leaves_out_trials_of_another_recipe(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(name="a", search=SEARCH))
    second = lab.submit(
        name="s",
        warm_start={"from": "a", "as": "prior"},
        search=search(algorithm="tpe"),
        recipe={"lora_dropout": 0.25, "seed": 7},
    )
    lab.run(second)
    found = stored_preparation(lab, second)
    assert found.prior == ()
    assert found.notes[1] == (
        "4 trials were left out because the recipe differs from this study's fixed values:"
        " lora_dropout 0.25 instead of 0.0"
    )


def test_a_prior_of_another_model_fails_a_sweep_with_the_difference(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """A submitted study is refused at once; a schedule's sweep meets it when it is prepared."""
    lab = make_lab(cpus=1)
    lab.run(lab.submit(name="a", search=SEARCH))
    second = lab.submit(
        name="s",
        warm_start={"from": "a", "as": "prior"},
        search=search(algorithm="tpe"),
        model={"id": "org/other"},
    )
    lab.run(second)
    study = lab.study(second)
    assert (study.state, study.reason) == (
        StudyState.FAILED,
        "warm_start.from: the study 'a' cannot be a prior for this study:"
        " model.id is org/model there and org/other here",
    )


@pytest.mark.parametrize("how", ["enqueue", "prior"])
def test_a_source_of_another_task_fails_a_sweep_with_the_difference(
    make_lab: Callable[..., CoordinatorLab], how: str
) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(name="a", search=SEARCH))
    second = lab.submit(
        name="s",
        warm_start={"from": "a", "as": how},
        search=search(algorithm="tpe"),
        task="regression",
        objective={"metric": "spearman"},
    )
    lab.run(second)
    study = lab.study(second)
    assert study.state == StudyState.FAILED
    assert study.reason.endswith("this study: task is causal_lm there and regression here")


def test_recipes_that_are_the_best_by_another_metric_are_called_so(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, measures=lambda order, rung: {"eval_loss": 1 + 1 / rung, "accuracy": 1 - 1 / rung})
    lab.run(lab.submit(name="a", search=SEARCH))
    second = lab.submit(
        name="s", warm_start=enqueue("a", top_k=1), search=SEARCH, objective={"metric": "accuracy"}
    )
    lab.run(second)
    assert "the best recipes are those by eval_loss: this study's accuracy is another" in lab.events(
        preparation.WARM_START
    )


def test_a_source_without_a_result_is_a_cold_start(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    with lab.database.write() as session:
        definition = parse_definition({**DEFINITION, "name": "a"}).model_dump(mode="json")
        session.add(Study(name="a", definition=definition, state=StudyState.CANCELLED))
    second = lab.submit(name="s", warm_start=enqueue("a"), search=SEARCH)
    lab.run(second)
    assert lab.events(preparation.WARM_START) == ["no warm start: the study 'a' has no completed trial"]
    assert lab.study(second).state == StudyState.COMPLETED


def test_a_source_that_is_gone_fails_the_study(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    second = lab.submit(name="s", warm_start=enqueue("a"), search=SEARCH)
    lab.run(second)
    assert lab.study(second).reason == "warm_start.from: no study or schedule is called 'a'"


def test_a_schedule_that_names_itself_learns_from_its_last_sweep(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2)
    definition = parse_definition(
        {**DEFINITION, "name": "nightly", "search": SEARCH, "warm_start": enqueue("nightly", top_k=2)}
    )
    with lab.database.write() as session:
        schedule = Schedule(
            name="nightly",
            cron="0 2 * * *",
            timezone="UTC",
            definition=definition.model_dump(mode="json"),
            next_fire_at=datetime.now(UTC) - timedelta(minutes=1),
        )
        session.add(schedule)

    def sweeps() -> list[Study]:
        with lab.database.read() as session:
            query = select(Study).where(Study.schedule_id == schedule.id).order_by(Study.fired_for)
            return list(session.scalars(query))

    lab.rounds(lambda: len(sweeps()) == 1)
    lab.run(sweeps()[0].id)
    with lab.database.write() as session:
        # The night after: the first sweep belongs to the day before.
        session.get_one(Study, sweeps()[0].id).fired_for = datetime.now(UTC) - timedelta(days=1)
        session.get_one(Schedule, schedule.id).next_fire_at = datetime.now(UTC) - timedelta(minutes=1)
    lab.rounds(lambda: len(sweeps()) == 2)
    lab.run(sweeps()[1].id)
    cold, warm = lab.events(preparation.WARM_START)
    assert cold == "no warm start: the schedule 'nightly' has no other completed sweep yet"
    assert warm.startswith(
        f"warm start from the schedule 'nightly' (its sweep {sweeps()[0].name!r}): its 2 best"
    )
    assert len(stored_preparation(lab, sweeps()[1].id).enqueued) == 2


def test_a_warm_start_comes_after_the_range_test_and_keeps_to_its_bounds(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(name="a", search=SEARCH))
    second = lab.submit(name="s", warm_start=enqueue("a", top_k=4), search=TESTED)
    lab.run(second)
    found = stored_preparation(lab, second)
    assert found.learning_rate_bounds is not None
    low, high = found.learning_rate_bounds
    assert found.enqueued
    assert all(low <= point["learning_rate"] <= high for point in found.enqueued)
    assert "is outside" in " ".join(found.notes)
