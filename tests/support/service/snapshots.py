"""Snapshots for the tests of `decide`: by hand, and as many as hypothesis can think of."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from service.coordinator.policy.limits import Limits, Repeats
from service.coordinator.policy.placement import Placement, WorkerSlots
from service.coordinator.policy.snapshot import Snapshot, TrialPhase, TrialSnapshot
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
    """A study of one base with that many free slots, unless `placement` says otherwise."""
    known: dict[str, object] = {
        "state": StudyState.RUNNING,
        "cancel_requested": False,
        "limits": limits(),
        "running_seconds": 0.0,
        "gpu_hours": 0.0,
        "placement": Placement(workers=(WorkerSlots(worker_id="w", free=free_slots),)),
    }
    return Snapshot(trials=trials, **{**known, **changes})  # type: ignore[arg-type]


def waiting(number: int, lost: int = 0, **more: Any) -> TrialSnapshot:
    return TrialSnapshot(number=number, phase=TrialPhase.WAITING, lost_attempts=lost, **more)


def live(number: int, *, stop_requested: bool = False, **more: Any) -> TrialSnapshot:
    return TrialSnapshot(
        number=number,
        phase=TrialPhase.LIVE,
        live_attempt_id=100 + number,
        stop_requested=stop_requested,
        **more,
    )


def ended(
    number: int, outcome: AttemptState = AttemptState.COMPLETED, fatal: str | None = None, **more: Any
) -> TrialSnapshot:
    """Ended as the number-th, unless it says otherwise; a completed one has its number as its value."""
    known = {"end_order": number, "value": float(number) if outcome is AttemptState.COMPLETED else None}
    return TrialSnapshot(
        number=number, phase=TrialPhase.ENDED, outcome=outcome, fatal_reason=fatal, **{**known, **more}
    )


BASES = ("nf4", "int8", "none")


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Workers of all bases and of none, with and without free slots."""
    bases = draw(st.lists(st.none() | st.sampled_from(BASES), max_size=4))
    return Placement(
        workers=tuple(
            WorkerSlots(
                worker_id=f"w{n}",
                base=base,
                loaded=base or draw(st.none() | st.sampled_from(BASES)),
                free=draw(st.integers(0, 4)),
                trials=draw(st.integers(0, 2)),
                reserved=draw(st.booleans()),
                spare=draw(st.integers(0, 2)),
            )
            for n, base in enumerate(bases)
        )
    )


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
            more = {
                "base": draw(st.sampled_from(BASES)),
                "rested": draw(st.booleans()),
                "suspect": draw(st.booleans()),
                "poison": draw(st.none() | st.just("poisonous")),
                "stop_reason": draw(st.none() | st.just("too slow")),
            }
            made.append(waiting(number, draw(st.integers(0, 3)), **more))
        elif phase is TrialPhase.LIVE:
            told = draw(st.sampled_from(["nothing", "stop_requested", "pause_requested"]))
            words: dict[str, Any] = {}
            if told != "nothing":
                words = {told: True, "overdue": draw(st.booleans())}
            words |= {"stop_reason": draw(st.none() | st.just("too slow"))}
            again = told != "nothing" and draw(st.booleans())
            made.append(live(number, send_again=again, **words))
        else:
            more = {"end_order": draw(st.integers(0, 9)), "feasible": draw(st.booleans())}
            outcome = draw(st.sampled_from(ENDS))
            more["settled"] = outcome is AttemptState.CANCELLED and draw(st.booleans())
            made.append(ended(number, outcome, **more))
    searching = any(t.phase is not TrialPhase.ENDED for t in made)
    if asked == trials and not searching and draw(st.booleans()):
        of = draw(st.integers(0, trials - 1))
        again = {"repeat_of": of, "seed": draw(st.sampled_from([43, 44]))}
        made.append(draw(st.sampled_from([waiting(asked, **again), live(asked, **again)])))
    return snapshot(
        *made,
        placement=draw(placements()),
        limits=limits(
            trials=trials,
            max_parallel_trials=parallel,
            max_failed_trials=draw(st.none() | st.integers(0, 3)),
            timeout_seconds=draw(st.none() | st.just(10.0)),
            target_value=draw(st.none() | st.integers(0, 8).map(float)),
            no_improvement_trials=draw(st.none() | st.integers(1, 3)),
            repeats=draw(st.none() | st.just(Repeats(top_k=2, seeds=(43, 44)))),
        ),
        cancel_requested=draw(st.booleans()),
        pause_reason=draw(st.none() | st.just("paused on request")),
        deadline_reason=draw(st.none() | st.just("budget.until has come")),
        exhausted=draw(st.booleans()),
        running_seconds=draw(st.sampled_from([0.0, 10.0, 11.0])),
    )
