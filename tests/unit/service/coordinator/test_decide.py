"""`decide` is pure, so its promises are checked on every snapshot hypothesis can think of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.coordinator.decide import (
    Ask,
    Dispatch,
    EndStudy,
    EndTrial,
    Limits,
    Snapshot,
    StopAttempt,
    TrialPhase,
    TrialSnapshot,
    decide,
)
from service.states import AttemptState, StudyState

ENDS = [
    s for s in AttemptState if s not in (AttemptState.DISPATCHED, AttemptState.RUNNING, AttemptState.LOST)
]


def limits(**changes: object) -> Limits:
    given_limits: dict[str, object] = {
        "trials": 4,
        "max_parallel_trials": 2,
        "max_failed_trials": None,
        "max_retries": 1,
        "timeout_seconds": None,
        "max_gpu_hours": None,
    }
    return Limits(**{**given_limits, **changes})  # type: ignore[arg-type]


def snapshot(*trials: TrialSnapshot, free_slots: int = 2, **changes: object) -> Snapshot:
    known: dict[str, object] = {
        "state": StudyState.RUNNING,
        "cancel_requested": False,
        "limits": limits(),
        "running_seconds": 0.0,
        "gpu_hours": 0.0,
    }
    return Snapshot(trials=trials, free_slots=free_slots, **{**known, **changes})  # type: ignore[arg-type]


def waiting(number: int, lost: int = 0) -> TrialSnapshot:
    return TrialSnapshot(number=number, phase=TrialPhase.WAITING, lost_attempts=lost)


def live(number: int, *, stop_requested: bool = False) -> TrialSnapshot:
    return TrialSnapshot(
        number=number, phase=TrialPhase.LIVE, live_attempt_id=100 + number, stop_requested=stop_requested
    )


def ended(
    number: int, outcome: AttemptState = AttemptState.COMPLETED, fatal: str | None = None
) -> TrialSnapshot:
    return TrialSnapshot(number=number, phase=TrialPhase.ENDED, outcome=outcome, fatal_reason=fatal)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    trials = draw(st.integers(1, 8))
    asked = draw(st.integers(0, trials))
    parallel = draw(st.integers(1, 4))
    phases = [draw(st.sampled_from(list(TrialPhase))) for _ in range(asked)]
    while phases.count(TrialPhase.LIVE) > parallel:
        phases[phases.index(TrialPhase.LIVE)] = TrialPhase.ENDED
    made = []
    for number, phase in enumerate(phases):
        if phase is TrialPhase.WAITING:
            made.append(waiting(number, draw(st.integers(0, 3))))
        elif phase is TrialPhase.LIVE:
            made.append(live(number, stop_requested=draw(st.booleans())))
        else:
            made.append(ended(number, draw(st.sampled_from(ENDS))))
    return snapshot(
        *made,
        free_slots=draw(st.integers(0, 6)),
        limits=limits(
            trials=trials,
            max_parallel_trials=parallel,
            max_failed_trials=draw(st.none() | st.integers(0, 3)),
            timeout_seconds=draw(st.none() | st.just(10.0)),
        ),
        cancel_requested=draw(st.booleans()),
        running_seconds=draw(st.sampled_from([0.0, 10.0, 11.0])),
    )


@given(snapshots())
def test_budgets_hold_whatever_is_free(given_snapshot: Snapshot) -> None:
    """Never a trial too many, never more alive than allowed, never a slot that is not there."""
    actions = decide(given_snapshot)
    asks = sum(isinstance(a, Ask) for a in actions)
    sent = asks + sum(isinstance(a, Dispatch) for a in actions)
    alive = sum(t.phase is TrialPhase.LIVE for t in given_snapshot.trials)
    assert len(given_snapshot.trials) + asks <= given_snapshot.limits.trials
    assert sent == 0 or alive + sent <= given_snapshot.limits.max_parallel_trials
    assert sent <= given_snapshot.free_slots


@given(snapshots())
def test_a_study_ends_only_when_nothing_is_alive_and_nothing_waits(given_snapshot: Snapshot) -> None:
    """The end comes last, after every trial has one of its own."""
    actions = decide(given_snapshot)
    ends = [a for a in actions if isinstance(a, EndStudy)]
    assert len(ends) <= 1
    if ends:
        assert not any(t.phase is TrialPhase.LIVE for t in given_snapshot.trials)
        closed = {a.trial_number for a in actions if isinstance(a, EndTrial)}
        assert closed == {t.number for t in given_snapshot.trials if t.phase is TrialPhase.WAITING}
        assert actions[-1] == ends[0]


@given(snapshots())
def test_no_trial_is_handled_twice_in_one_round(given_snapshot: Snapshot) -> None:
    actions = decide(given_snapshot)
    numbers = [a.trial_number for a in actions if isinstance(a, Dispatch | EndTrial)]
    assert len(numbers) == len(set(numbers))


def test_free_slots_are_filled_with_lost_trials_before_new_ones() -> None:
    actions = decide(snapshot(ended(0), waiting(1, lost=1), free_slots=2))
    assert actions == [Dispatch(trial_number=1), Ask()]


def test_a_trial_whose_worker_was_lost_too_often_fails_without_taking_a_slot() -> None:
    actions = decide(snapshot(waiting(0, lost=2), free_slots=1))
    assert [type(a) for a in actions] == [EndTrial, Ask]
    assert isinstance(actions[0], EndTrial)
    assert actions[0].outcome is AttemptState.FAILED


def test_a_cancel_stops_what_lives_once_and_closes_what_waits() -> None:
    actions = decide(snapshot(live(0), live(1, stop_requested=True), waiting(2), cancel_requested=True))
    assert [type(a) for a in actions] == [StopAttempt, EndTrial]


def test_a_fault_in_model_or_data_fails_the_study_with_its_own_sentence() -> None:
    actions = decide(snapshot(ended(0, AttemptState.FAILED, fatal="train.jsonl:3: no field 'prompt'")))
    assert actions == [EndStudy(state=StudyState.FAILED, reason="train.jsonl:3: no field 'prompt'")]


def test_more_failed_trials_than_allowed_fail_the_study() -> None:
    failed = [ended(n, AttemptState.FAILED) for n in range(2)]
    [end] = decide(snapshot(*failed, limits=limits(max_failed_trials=1)))
    assert end == EndStudy(
        state=StudyState.FAILED, reason="2 trials failed; budget.max_failed_trials allows 1"
    )


def test_all_trials_ended_completes_the_study() -> None:
    trials = [ended(0), ended(1, AttemptState.PRUNED), ended(2, AttemptState.DIVERGED), ended(3)]
    assert decide(snapshot(*trials)) == [EndStudy(state=StudyState.COMPLETED, reason="all 4 trials ended")]


def test_a_study_without_one_completed_trial_has_failed_and_says_how() -> None:
    trials = [ended(0, AttemptState.DIVERGED), *(ended(n, AttemptState.OUT_OF_MEMORY) for n in (1, 2, 3))]
    assert decide(snapshot(*trials)) == [
        EndStudy(
            state=StudyState.FAILED,
            reason="all 4 trials ended, and none completed (1 diverged, 3 out of memory)",
        )
    ]


def test_the_wall_clock_completes_a_study_that_has_a_result() -> None:
    actions = decide(snapshot(ended(0), limits=limits(timeout_seconds=60.0), running_seconds=61.0))
    assert actions == [EndStudy(state=StudyState.COMPLETED, reason="budget.timeout of 60 s reached")]


def test_gpu_hours_complete_a_study_that_has_a_result() -> None:
    actions = decide(snapshot(ended(0), limits=limits(max_gpu_hours=1.0), gpu_hours=1.25))
    assert actions == [
        EndStudy(state=StudyState.COMPLETED, reason="budget.max_gpu_hours of 1 reached (1.25 spent)")
    ]


def test_trials_that_a_budget_stops_are_told_of_the_budget_and_not_of_what_came_of_the_others() -> None:
    actions = decide(snapshot(live(0), waiting(1), limits=limits(timeout_seconds=60.0), running_seconds=61.0))
    reasons = [a.reason for a in actions if isinstance(a, StopAttempt | EndTrial)]
    assert reasons == ["the study ended: budget.timeout of 60 s reached"] * 2


def test_one_failed_trial_is_counted_in_the_singular() -> None:
    [end] = decide(snapshot(ended(0, AttemptState.FAILED), limits=limits(max_failed_trials=0)))
    assert end == EndStudy(
        state=StudyState.FAILED, reason="1 trial failed; budget.max_failed_trials allows 0"
    )
