"""Which trials idle workers take over at the end of a study, and that nothing changes by it but the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.coordinator.policy import hand_over
from service.coordinator.policy.decide import Dispatch, PauseAttempt, decide, trials_to_come
from service.coordinator.policy.hand_over import hand_overs
from service.coordinator.policy.placement import Placement, WorkerSlots
from service.coordinator.policy.snapshot import Snapshot, TrialSnapshot
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from tests.support.service.snapshots import limits, live, snapshot, waiting

BASE = "org/model nf4"


def at(number: int, worker_id: str, seconds: float | None, **more: object) -> TrialSnapshot:
    return live(number, worker_id=worker_id, seconds_left=seconds, base=BASE, **more)


def workers(**trials: int) -> Placement:
    """Workers with so many trials, and room for four, that have the base in memory."""
    return Placement(
        workers=tuple(
            WorkerSlots(
                worker_id=worker_id, trials=has, free=4 - has, base=BASE if has else None, loaded=BASE
            )
            for worker_id, has in trials.items()
        )
    )


def study(*trials: TrialSnapshot, placement: Placement, **more: object) -> Snapshot:
    limit = limits(trials=len(trials), max_parallel_trials=8)
    return snapshot(*trials, placement=placement, **{"limits": limit, **more})


def numbers(given_snapshot: Snapshot) -> list[int]:
    return [trial.number for trial in hand_overs(given_snapshot)]


def test_the_trial_that_shortens_the_study_most_goes() -> None:
    """By themselves they take 60 and 30 s. If the first goes, the study ends after 62 s, else after 60."""
    pack = study(at(0, "full", 120.0), at(1, "full", 60.0), placement=workers(full=2, idle=0))
    assert numbers(pack) == [1]
    assert decide(pack) == [PauseAttempt(attempt_id=101, reason=hand_over.REASON)]
    assert trials_to_come(pack) == 1  # so the idle worker is kept for it


@pytest.mark.parametrize(
    "pack",
    [
        study(at(0, "full", 5.0), at(1, "full", 5.0), placement=workers(full=2, idle=0)),
        study(at(0, "full", 900.0), placement=workers(full=1, idle=0)),
        study(at(0, "full", 900.0), at(1, "full", None), placement=workers(full=2, idle=0)),
        study(at(0, "full", 900.0), at(1, "full", 900.0), placement=workers(full=2)),
        study(at(0, "full", 900.0, suspect=True), at(1, "full", 900.0), placement=workers(full=2, idle=0)),
        study(
            at(0, "full", 900.0, stop_requested=True), at(1, "full", 900.0), placement=workers(full=2, idle=0)
        ),
        study(
            at(0, "full", 900.0),
            at(1, "full", 900.0),
            at(2, "other", 900.0, pause_requested=True),
            placement=workers(full=2, other=1, idle=0),
        ),
        study(at(0, "full", 900.0), at(1, "full", 900.0), placement=workers(full=2, idle=0), resumes=False),
    ],
    ids=[
        "soon over",
        "no pack",
        "one has only begun",
        "no idle worker",
        "a suspect",
        "one that stops",
        "the idle worker is for another",
        "a range test",
    ],
)
def test_nothing_goes_where_it_does_not_pay(pack: Snapshot) -> None:
    assert numbers(pack) == []


def test_a_worker_stays_until_it_is_known_whether_it_pays() -> None:
    begun = study(at(0, "full", 900.0), at(1, "full", None), placement=workers(full=2, idle=0, more=0))
    assert (numbers(begun), trials_to_come(begun)) == ([], 1)
    over = study(at(0, "full", 2.0), at(1, "full", 2.0), placement=workers(full=2, idle=0))
    assert trials_to_come(over) == 0


def test_an_idle_worker_with_another_base_takes_nothing_over() -> None:
    idle = WorkerSlots(worker_id="idle", free=1, loaded="org/model int8")
    placement = Placement(workers=(*workers(full=2).workers, idle))
    assert numbers(study(at(0, "full", 900.0), at(1, "full", 900.0), placement=placement)) == []


def test_what_waits_goes_first() -> None:
    placement = workers(full=2, idle=0)
    trials = at(0, "full", 900.0), at(1, "full", 900.0), waiting(2, base=BASE)
    assert decide(study(*trials, placement=placement)) == [Dispatch(trial_number=2)]
    assert not any(
        isinstance(action, PauseAttempt)
        for action in decide(study(*trials[:2], placement=placement, limits=limits(trials=9)))
    )


@given(st.lists(st.floats(1.0, 1e4), min_size=2, max_size=6), st.integers(0, 4))
def test_never_more_go_than_workers_are_idle_and_one_of_each_pack_at_a_time(
    seconds: list[float], idle: int
) -> None:
    trials = [at(n, f"p{n % 2}", left) for n, left in enumerate(seconds)]
    packs = {f"p{n}": len(seconds[n::2]) for n in range(2)}
    placement = workers(**packs, **{f"i{n}": 0 for n in range(idle)})
    chosen = hand_overs(study(*trials, placement=placement))
    assert len(chosen) <= min(idle, 2)
    assert len({trial.worker_id for trial in chosen}) == len(chosen)


def test_a_study_whose_trials_are_handed_over_has_the_values_of_one_whose_are_not(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of different lengths on two workers: whenever one is idle, it takes one over."""
    search = {
        "algorithm": "random",
        "trials": 6,
        "seed": 3,
        "space": {**DEFINITION["search"]["space"], "epochs": {"min": 1, "max": 8, "type": "int"}},
    }
    budget = {"max_parallel_trials": 6}
    calm = make_lab(cpus=2, slots=4)
    calm.run(calm.submit(search=search, budget=budget))
    assert calm.events("attempt_paused") == []
    monkeypatch.setattr(hand_over, "COST_SECONDS", 0.0)
    monkeypatch.setattr(hand_over, "LEAST_GAIN_SECONDS", 0.0)
    moved = make_lab(cpus=2, slots=4)
    moved.run(moved.submit(search=search, budget=budget))
    assert moved.events("attempt_paused")
    assert moved.values() == calm.values()
    by_trial: dict[int, list[str]] = {}
    for attempt in moved.attempts():
        by_trial.setdefault(attempt.trial_number, []).append(attempt.worker_id)
    assert any(len(set(workers)) == 2 for workers in by_trial.values())
    assert {a.state for a in moved.attempts()} == {"completed", "paused"}
