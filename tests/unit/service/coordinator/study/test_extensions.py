"""Whole studies that are extended, while they run and after their end, on a cluster that trains nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from service.control import extensions
from service.control.documents import read_extension
from service.coordinator.study.leased_study import LeasedStudy
from service.db.models import Study
from service.errors import BeingCancelled, Conflict, Invalid, LimitReached, NothingToExtend
from service.maintenance import integrity
from service.rest.preconditions import ANYTHING
from service.states import StudyState
from service.studies.commands import request_cancel
from service.studies.limits import UNLIMITED, Limits
from service.studies.queries import show
from tests.support.service.coordinator import DEFINITION, GRID, CoordinatorLab
from workers.contract import TrialOrder, TrialOutcome

RANDOM = {**DEFINITION["search"], "algorithm": "random", "trials": 10}
Make = Callable[..., CoordinatorLab]


def extend(lab: CoordinatorLab, study_id: str, limits: Limits = UNLIMITED, **more: Any) -> None:
    wanted = read_extension(more)
    lab.database.transact(
        lambda session: extensions.extend(session, study_id, wanted, ANYTHING, asked_by="ada", limits=limits)
    )


def cancel(lab: CoordinatorLab, study_id: str) -> None:
    with lab.database.write() as session:
        request_cancel(session, study_id)


def violations(lab: CoordinatorLab) -> list[integrity.Violation]:
    return integrity.find_violations(lab.settings)


@pytest.mark.parametrize("algorithm", ["random", "qmc"])
def test_ten_trials_and_ten_more_are_twenty(make_lab: Make, algorithm: str) -> None:
    whole, extended = make_lab(), make_lab()
    whole.run(whole.submit(search={**RANDOM, "algorithm": algorithm, "trials": 20}))
    study_id = extended.submit(search={**RANDOM, "algorithm": algorithm})
    extended.run(study_id)
    assert len(extended.values()) == 10
    extend(extended, study_id, trials="+10")
    study = extended.study(study_id)
    assert (study.state, study.ended_at, study.definition["search"]["trials"]) == (
        StudyState.QUEUED,
        None,
        10,
    )
    extended.run(study_id)
    assert extended.values() == whole.values()
    assert extended.study(study_id).reason == "all 20 trials ended"
    assert violations(extended) == []


def test_a_running_study_goes_on_with_more_trials(make_lab: Make) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: len(lab.attempts()) >= 5)
    extend(lab, study_id, trials=5)
    lab.run(study_id)
    assert len(lab.values()) == 15
    assert lab.events("study_extended") == ["'ada' extended it: search.trials is 15 now"]
    with lab.database.read() as session:
        shown = show(session, lab.study(study_id))
    assert (shown.trials_requested, shown.definition["search"]["trials"]) == (15, 15)
    assert [(each.trials, each.asked_by, each.since) for each in shown.extensions] == [(15, "ada", None)]
    assert violations(lab) == []


def test_a_study_that_is_extended_in_the_moment_of_its_end_goes_on(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    end, extended = LeasedStudy.end, []

    def extended_first(study: LeasedStudy, state: StudyState, reason: str, settle: Any) -> bool:
        if not extended:
            extended.append(reason)
            extend(lab, study_id, trials=2)
        return end(study, state, reason, settle)

    monkeypatch.setattr(LeasedStudy, "end", extended_first)
    lab.run(study_id)
    assert (extended, len(lab.values())) == (["all 10 trials ended"], 12)
    assert lab.study(study_id).reason == "all 12 trials ended"
    assert violations(lab) == []


def test_a_cancelled_study_goes_on_without_the_trials_that_were_cancelled(make_lab: Make) -> None:
    lab = make_lab(2)
    study_id = lab.submit(search=RANDOM, budget={"max_parallel_trials": 2})
    lab.rounds(lambda: len(lab.attempts()) == 4)
    cancel(lab, study_id)
    with pytest.raises(BeingCancelled, match="is being cancelled; extend it when it has ended"):
        extend(lab, study_id, trials=2)
    lab.run(study_id)
    begun = lab.values()
    cancelled = [number for number, (outcome, _, _) in begun.items() if outcome == "cancelled"]
    assert cancelled
    extend(lab, study_id, trials=2)
    lab.run(study_id)
    values = lab.values()
    assert (len(values), lab.study(study_id).reason) == (12, "all 12 trials ended")
    assert {n: values[n] for n in begun} == begun
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert violations(lab) == []


def test_what_ended_a_study_does_not_end_it_again_at_once(make_lab: Make) -> None:
    lab = make_lab()
    study_id = lab.submit(
        search=RANDOM, budget={"max_parallel_trials": 1, "target_value": 1000.0, "no_improvement_trials": 9}
    )
    lab.run(study_id)
    assert "budget.target_value of 1000 reached: trial 0" in lab.study(study_id).reason
    extend(lab, study_id, trials=1)
    lab.run(study_id)
    assert "budget.target_value of 1000 reached: trial 1" in lab.study(study_id).reason
    assert violations(lab) == []


def test_a_study_whose_trials_failed_may_have_more_that_fail(make_lab: Make) -> None:
    def fail(order: TrialOrder) -> TrialOutcome | None:
        if order.trial_number > 2:
            return None
        return TrialOutcome(
            attempt_id=order.attempt_id, status="failed", reason="bad luck", examples_seen=0, steps=0
        )

    lab = make_lab(1, ending=fail)
    budget = {"max_parallel_trials": 1, "max_failed_trials": 2}
    study_id = lab.submit(search={**RANDOM, "trials": 3}, budget=budget)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.FAILED
    extend(lab, study_id, trials=2, max_failed_trials="+1")
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.reason) == (StudyState.COMPLETED, "all 5 trials ended")
    assert violations(lab) == []


def test_a_study_that_ran_out_of_time_needs_more_of_it(make_lab: Make) -> None:
    lab = make_lab(1)
    budget = {"max_parallel_trials": 1, "timeout": "1h"}
    study_id = lab.submit(search=RANDOM, budget=budget)
    lab.rounds(lambda: len(lab.attempts()) == 3)
    lab.let_time_pass(3600)
    lab.run(study_id)
    assert lab.study(study_id).reason == "budget.timeout of 3600 s reached"
    with pytest.raises(NothingToExtend, match="would end again at once: it ran for 3,6"):
        extend(lab, study_id, trials=5)
    with lab.database.write() as session:  # the time since its end is no time of the study's
        study = session.get_one(Study, study_id)
        assert study.ended_at is not None
        study.ended_at -= timedelta(days=1)
    lab.let_time_pass(86400)
    extend(lab, study_id, timeout="+2h")
    lab.run(study_id)
    assert lab.study(study_id).reason == "all 10 trials ended"
    assert violations(lab) == []


def test_repeats_of_winners_are_judged_anew(make_lab: Make) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**RANDOM, "trials": 3}, repeats={"top_k": 2, "seeds": 2})
    lab.run(study_id)
    assert lab.study(study_id).reason == "all 3 trials ended; the 2 best were run again with 2 seeds each"
    extend(lab, study_id, trials=9)
    lab.run(study_id)
    assert lab.study(study_id).reason == "all 12 trials ended; the 2 best were run again with 2 seeds each"
    assert violations(lab) == []


def test_a_grid_has_no_more_points_than_it_has(make_lab: Make) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**GRID, "trials": 5})
    lab.run(study_id)
    extend(lab, study_id, trials=100)
    lab.run(study_id)
    points = [tuple(sorted(params.items())) for _, _, params in lab.values().values()]
    assert (len(points), len(set(points))) == (8, 8)
    with pytest.raises(NothingToExtend, match="has 8 trials already, and its grid has no further"):
        extend(lab, study_id, trials=1)
    assert violations(lab) == []


def test_what_has_no_bound_or_nothing_to_do_is_refused(make_lab: Make) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**RANDOM, "trials": 2}, budget={"timeout": "1h"})
    with pytest.raises(Invalid, match="max_gpu_hours"):
        extend(lab, study_id, max_gpu_hours=1)
    with pytest.raises(Invalid, match="trials"):
        extend(lab, study_id, trials=100_000)
    lab.run(study_id)
    with pytest.raises(NothingToExtend, match="has asked for all of its search's trials"):
        extend(lab, study_id, timeout="1h")
    other = lab.submit(name="t", search=RANDOM)
    cancel(lab, other)
    lab.run(other)
    with pytest.raises(Conflict, match="ended before it had begun"):
        extend(lab, other, trials=1)


def test_the_limits_of_the_owner_hold(make_lab: Make) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**RANDOM, "trials": 4})
    extend(lab, study_id, Limits(active_studies=1, queued_trials=6), trials=2)
    with pytest.raises(LimitReached, match="this extension needs 1 more"):
        extend(lab, study_id, Limits(queued_trials=6), trials=1)
    lab.run(study_id)
    lab.submit(name="t", search=RANDOM)
    with pytest.raises(LimitReached, match="has 1 study queued"):
        extend(lab, study_id, Limits(active_studies=1), trials=1)
    assert lab.study(study_id).state == StudyState.COMPLETED


@pytest.mark.parametrize("seed", range(3))
def test_an_extended_study_ends_as_a_whole_one_through_deaths_of_coordinators(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    whole, lab, dice = make_lab(), make_lab(), random.Random(seed)
    whole.run(whole.submit(search=RANDOM))
    study_id = lab.submit(search={**RANDOM, "trials": 4})
    lab.run_through_deaths(study_id, dice, monkeypatch, chance=0.05)
    extend(lab, study_id, trials=6)
    lab.run_through_deaths(study_id, dice, monkeypatch, chance=0.05)
    assert lab.values() == whole.values()
    assert violations(lab) == []
