"""Whole studies whose workers die: who is tried again, with whom, how often, and who is blamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from service.coordinator.cluster.deliveries import Refused
from service.coordinator.policy import retries
from service.db.models import Study
from service.optuna_store.studies import read_trials
from service.states import AttemptState, LossCause, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

RANDOM = {**DEFINITION["search"], "algorithm": "random"}


def search(trials: int) -> dict[str, Any]:
    return {**RANDOM, "trials": trials}


def budget(**limits: Any) -> dict[str, Any]:
    return {"max_parallel_trials": 4, **limits}


def deadly(*numbers: int, at: int = 50) -> Callable[[TrialOrder, int], bool]:
    """Trials that kill their worker whenever they go on from that many examples."""
    return lambda order, seen: order.trial_number in numbers and seen == at


def outcomes(lab: CoordinatorLab) -> dict[int, str]:
    trials = read_trials(lab.storage, "s")
    return {t.number: t.user_attrs["outcome"] for t in trials if "outcome" in t.user_attrs}


def causes(lab: CoordinatorLab, number: int) -> list[tuple[str, str | None]]:
    return [(a.state, a.loss_cause) for a in lab.attempts() if a.trial_number == number]


POISONOUS = (
    "poisonous: its worker died 2 times in a row at the same point, after 50 examples, "
    "the last time with no other trial on it"
)


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_poisonous_trial_in_a_pack_of_four_fails_alone(
    make_lab: Callable[..., CoordinatorLab], culprit: int
) -> None:
    calm = make_lab(cpus=1, slots=4)
    calm.run(calm.submit(search=search(6), budget=budget()))
    lab = make_lab(cpus=1, slots=4, lethal=deadly(culprit))
    study_id = lab.submit(search=search(6), budget=budget(max_retries=3))
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.reason) == (StudyState.COMPLETED, "all 6 trials ended")
    assert outcomes(lab) == {n: "failed" if n == culprit else "completed" for n in range(6)}
    assert lab.events("trial_failed") == [POISONOUS]
    others = {n: value for n, value in calm.values().items() if n != culprit}
    assert {n: value for n, value in lab.values().items() if n != culprit} == others
    assert causes(lab, culprit) == [("lost", "worker_died")] * 2
    for mate in {0, 1, 2, 3} - {culprit}:
        assert causes(lab, mate) == [("lost", "worker_died"), ("completed", None)]


def test_who_was_on_a_dead_worker_trains_by_itself_until_past_that_place(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, slots=4)
    study_id = lab.submit(search=search(6), budget=budget())
    lab.rounds(lambda: [a.last_rung > 0 for a in lab.attempts()] == [True] * 4)
    lab.cluster.kill("w1", LossCause.WORKER_DIED)
    packs: list[set[int]] = []

    def look() -> None:
        packs.extend(pack for pack in lab.cluster.together if pack and pack not in packs)

    lab.run(study_id, each=look)
    suspects = {0, 1, 2, 3}
    # The last suspect is past the place, no other waits, and so the next trials may come beside it.
    assert packs[:4] == [{0}, {1}, {2}, {3}]
    assert all(len(pack & suspects) <= 1 for pack in packs)
    assert {3, 4, 5} in packs
    assert set(outcomes(lab).values()) == {"completed"}
    assert [a.resumed_at_examples for a in lab.attempts()[4:8]] == [a.last_rung for a in lab.attempts()[:4]]


def test_a_coordinator_that_comes_anew_knows_the_suspects(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1, slots=4)
    study_id = lab.submit(search=search(6), budget=budget())
    lab.rounds(lambda: [a.last_rung > 0 for a in lab.attempts()] == [True] * 4)
    lab.cluster.kill("w1", LossCause.WORKER_DIED)
    suspects, rounds = {0, 1, 2, 3}, itertools.count(1)

    def look() -> None:
        assert all(len(pack & suspects) <= 1 for pack in lab.cluster.together)
        if next(rounds) % 4 == 0:
            lab.crash()

    lab.run(study_id, each=look)
    assert set(outcomes(lab).values()) == {"completed"}


def test_other_workers_keep_their_packs_while_one_is_emptied_for_a_suspect(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2, slots=2)
    study_id = lab.submit(search=search(12), budget=budget())
    lab.rounds(lambda: len(lab.cluster.alive) == 2 and all(n == 2 for n in lab.cluster.packs.values()))
    lab.cluster.kill("w1", LossCause.WORKER_DIED)
    lost = {a.trial_number for a in lab.attempts() if a.worker_id == "w1"}
    together: list[int] = []

    def look() -> None:
        assert all(len(pack) == 1 for pack in lab.cluster.together if pack & lost and _open(lab, lost))
        together.append(max(map(len, lab.cluster.together), default=0))

    lab.run(study_id, each=look)
    assert set(outcomes(lab).values()) == {"completed"}
    assert 2 in together


def _open(lab: CoordinatorLab, lost: set[int]) -> bool:
    """Whether none of the trials has got past the place where it was lost."""
    return all(a.last_rung == 0 for a in lab.attempts() if a.trial_number in lost and a.ordinal > 1)


def test_a_trial_alone_that_kills_its_worker_twice_is_not_tried_a_third_time(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2, lethal=deadly(1))
    study_id = lab.submit(search=search(4), budget=budget(max_retries=100))
    lab.run(study_id)
    assert outcomes(lab) == {0: "completed", 1: "failed", 2: "completed", 3: "completed"}
    assert causes(lab, 1) == [("lost", "worker_died")] * 2
    assert lab.events("trial_failed") == [POISONOUS]


def test_deaths_at_different_places_are_retried_as_often_as_the_budget_says(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    deaths: list[int] = []

    def once_at_each_rung(order: TrialOrder, seen: int) -> bool:
        first = order.trial_number == 0 and seen > 0 and seen not in deaths
        deaths.extend([seen] * first)
        return first

    lab = make_lab(cpus=1, lethal=once_at_each_rung)
    lab.run(lab.submit(search=search(2), budget=budget(max_retries=2)))
    assert outcomes(lab) == {0: "failed", 1: "completed"}
    assert lab.events("trial_failed") == [
        "its worker was lost 3 times; budget.max_retries allows 2 further attempts"
    ]
    assert [(a.resumed_at_examples, a.last_rung) for a in lab.attempts() if a.trial_number == 0] == [
        (0, 25),
        (25, 50),
        (50, 75),
    ]


@pytest.mark.parametrize(("max_retries", "times"), [(0, "once"), (1, "2 times")])
def test_the_silence_of_a_worker_counts_and_is_no_poison(
    make_lab: Callable[..., CoordinatorLab], max_retries: int, times: str
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(1), budget=budget(max_retries=max_retries))
    for _ in range(max_retries + 1):
        lab.rounds(lambda: any(lab.cluster.packs.values()))
        lab.cluster.kill(lab.cluster.alive[0], LossCause.UNREACHABLE)
        lab.coordinator.round()
    lab.run(study_id)
    further = "1 further attempt" if max_retries == 1 else "0 further attempts"
    assert lab.events("trial_failed") == [f"its worker was lost {times}; budget.max_retries allows {further}"]


def test_machines_that_go_away_cost_a_trial_none_of_its_retries(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(1), budget=budget(max_retries=0))
    for _ in range(5):
        lab.rounds(lambda: any(lab.cluster.packs.values()))
        lab.cluster.kill(lab.cluster.alive[0], LossCause.NODE_DIED)
        lab.coordinator.round()
    lab.run(study_id)
    assert outcomes(lab) == {0: "completed"}
    assert causes(lab, 0) == [("lost", "node_died")] * 5 + [("completed", None)]


def test_a_trial_that_takes_ten_machines_along_is_poisonous_too(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(2), budget=budget(max_parallel_trials=1))

    def take_it_along() -> None:
        if any(0 in pack for pack in lab.cluster.together):
            lab.cluster.kill(lab.cluster.alive[0], LossCause.NODE_DIED)

    lab.run(study_id, each=take_it_along)
    assert outcomes(lab) == {0: "failed", 1: "completed"}
    assert causes(lab, 0) == [("lost", "node_died")] * 10
    [reason] = lab.events("trial_failed")
    assert reason.startswith("poisonous: it was lost 10 times in a row at the same point")


def test_workers_that_died_while_no_coordinator_was_there_are_nobody_s_fault(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, slots=2)
    study_id = lab.submit(search=search(2), budget=budget(max_retries=0))
    lab.rounds(lambda: any(n == 2 for n in lab.cluster.packs.values()))
    lab.cluster.lose_connection()
    lab.cluster.kill("w1", LossCause.WORKER_DIED)
    lab.crash()
    lab.run(study_id)
    assert causes(lab, 0) == causes(lab, 1) == [("lost", "node_died"), ("completed", None)]


def test_an_order_that_a_worker_refuses_costs_no_retry(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(1), budget=budget(max_retries=0))
    lab.rounds(lambda: bool(lab.attempts()))
    [attempt] = lab.attempts()
    lab.cluster._workers["w1"].pack.clear()
    lab.cluster._workers["w1"].waiting.clear()
    lab.cluster._news.append(Refused(worker_id="w1", attempt_id=attempt.id, reason="busy"))
    lab.run(study_id)
    assert causes(lab, 0) == [("lost", "never_arrived"), ("completed", None)]


def test_a_lost_trial_waits_out_its_back_off_while_others_go_on(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(cpus=2)
    monkeypatch.setattr(retries, "rest_seconds", lambda tries: 3600.0)
    study_id = lab.submit(search=search(4), budget=budget(max_parallel_trials=2))
    lab.rounds(lambda: sum(lab.cluster.packs.values()) == 2)
    lab.cluster.kill(_worker_of(lab, 0), LossCause.UNREACHABLE)
    lab.rounds(lambda: sum(outcome == "completed" for outcome in outcomes(lab).values()) == 3)
    for _ in range(20):
        lab.coordinator.round()
    assert _worker_of(lab, 0) == ""
    assert lab.study(study_id).state == StudyState.RUNNING
    lab.let_time_pass(3601.0)
    lab.run(study_id)
    assert outcomes(lab)[0] == "completed"


def _worker_of(lab: CoordinatorLab, number: int) -> str:
    """The worker that trains a trial; empty: none does."""
    packs = zip(lab.cluster.alive, lab.cluster.together, strict=True)
    return next((worker_id for worker_id, pack in packs if number in pack), "")


# -- storage -----------------------------------------------------------------------------------------


def full_disk(order: TrialOrder) -> TrialOutcome:
    return TrialOutcome(
        attempt_id=order.attempt_id,
        status=OutcomeStatus.FAILED,
        reason="No space left on device: /artifacts",
        storage_fault=True,
    )


def test_artifacts_that_cannot_be_written_put_the_study_down_and_fail_nothing(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    full = True
    lab = make_lab(cpus=1, ending=lambda order: full_disk(order) if full else None)
    study_id = lab.submit(
        search=search(2), budget=budget(max_parallel_trials=1, max_retries=0), evaluation={}
    )
    lab.rounds(lambda: lab.study(study_id).state == StudyState.PAUSED)
    assert causes(lab, 0) == [("lost", "storage")] * 3
    assert lab.study(study_id).reason == (
        "3 attempts in a row could not write their artifacts; the last reason: "
        "No space left on device: /artifacts"
    )
    assert outcomes(lab) == {}
    full = False
    with lab.database.write() as session:
        study = session.get_one(Study, study_id)
        study.state, study.resumed_at = StudyState.QUEUED, study.paused_at
    lab.run(study_id)
    assert outcomes(lab) == {0: "completed", 1: "completed"}
    assert causes(lab, 0) == [("lost", "storage")] * 3 + [("completed", None)]


def test_the_pruner_s_word_stands_over_a_loss(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.submit(search=search(1), budget=budget())
    lab.rounds(lambda: any(a.state == AttemptState.RUNNING for a in lab.attempts()))
    [attempt] = lab.attempts()
    with lab.database.write() as session:
        session.merge(attempt).verdict_reason = "worse than the median"
    lab.cluster.kill("w1", LossCause.WORKER_DIED)
    lab.coordinator.round()
    assert [(a.state, a.loss_cause) for a in lab.attempts()] == [("pruned", None)]


def test_a_worker_whose_training_hangs_is_killed_and_its_trials_go_on_elsewhere(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2)
    study_id = lab.submit(budget={"max_parallel_trials": 2})
    lab.rounds(lambda: lab.cluster.running == 2)
    lab.rounds(lambda: len(lab.cluster.reported) >= 2)
    hung = lab.cluster.alive[0]
    lab.cluster.stall(hung, "no training pass ended for 310 s")
    lab.rounds(lambda: any(a.state == AttemptState.LOST for a in lab.attempts()))
    assert hung not in lab.cluster.alive
    lost = [a for a in lab.attempts() if a.state == AttemptState.LOST]
    assert {(a.worker_id, a.loss_cause) for a in lost} == {(hung, LossCause.STALLED)}
    assert lost[0].reason == f"worker {hung} hung and was killed: no training pass ended for 310 s"
    lab.let_time_pass(60)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert lab.events("attempt_lost") == [each.reason for each in lost]
