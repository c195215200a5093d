"""What the history says of an attempt that cannot go on where the one before it left off."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.coordinator.study.checkpoints import why_anew
from service.db.models import Attempt, utc_now
from service.states import AttemptState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import DataSummary, TrialStarted, UnusableCheckpoint

ONE_TRIAL = {
    "search": {**DEFINITION["search"], "algorithm": "random", "trials": 1},
    "budget": {"max_parallel_trials": 1, "max_retries": 5},
}

ROWS = DataSummary(
    train_rows=100, train_skipped=0, train_truncated=0, eval_rows=10, eval_skipped=0, eval_truncated=0
)


def attempt(ordinal: int, *, started: bool = True, **columns: object) -> Attempt:
    """An attempt that was lost, unless it says otherwise."""
    return Attempt(
        ordinal=ordinal,
        artifact_dir=f"/a/{ordinal}",
        started_at=utc_now() if started else None,
        **{
            "state": AttemptState.LOST,
            "examples_seen": 0,
            "last_rung": 0,
            "resumed_at_examples": 0,
            **columns,
        },
    )


def passed(ordinal: int, reason: str = "") -> UnusableCheckpoint:
    """The checkpoint of an attempt; missing unless there is a reason."""
    return UnusableCheckpoint(folder=f"/a/{ordinal}/checkpoint", reason=reason, missing=not reason)


def said(
    *earlier: Attempt,
    passed_over: tuple[UnusableCheckpoint, ...],
    resumed_at: int = 0,
    first_rung: int | None = 100,
    state: AttemptState = AttemptState.DISPATCHED,
) -> str | None:
    """What the attempt after these says."""
    event = TrialStarted(
        attempt_id=9,
        total_examples=400,
        total_steps=400,
        micro_batch_size=1,
        device="cpu",
        trainable_parameters=1,
        data=ROWS,
        resumed_at_examples=resumed_at,
        passed_over=passed_over,
    )
    present = attempt(len(earlier) + 1, state=state, examples_seen=70)
    return why_anew(event, present, earlier, first_rung=first_rung)


AGAIN = "begins again at 0 examples, since no checkpoint can be used: "


@pytest.mark.parametrize(
    ("earlier", "passed_over", "expected"),
    [
        (
            attempt(1, examples_seen=60),
            passed(1),
            "attempt 1 was lost after 60 examples, before its first checkpoint at 100 examples",
        ),
        (attempt(1, started=False), passed(1), "attempt 1 never began to train"),
        (
            attempt(1, examples_seen=230, last_rung=200),
            passed(1),
            "attempt 1 was lost at 230 examples, but there is no checkpoint in /a/1/checkpoint",
        ),
        (
            attempt(1, examples_seen=60, state=AttemptState.PAUSED),
            passed(1),
            "attempt 1 was paused at 60 examples, but there is no checkpoint in /a/1/checkpoint",
        ),
        (
            attempt(1, examples_seen=230, last_rung=200),
            passed(1, "The checkpoint /a/1/checkpoint cannot be used: its SHA-256 is another"),
            "attempt 1: The checkpoint /a/1/checkpoint cannot be used: its SHA-256 is another",
        ),
    ],
)
def test_an_attempt_that_begins_again_says_what_became_of_the_checkpoint(
    earlier: Attempt, passed_over: UnusableCheckpoint, expected: str
) -> None:
    assert said(earlier, passed_over=(passed_over,)) == f"attempt 2 {AGAIN}{expected}"


def test_every_earlier_attempt_is_spoken_of_newest_first() -> None:
    earlier = attempt(1, last_rung=100, examples_seen=110), attempt(2, resumed_at_examples=100)
    assert said(*earlier, passed_over=(passed(2), passed(1, "Changed since it was written: train data"))) == (
        f"attempt 3 {AGAIN}attempt 2 was lost before it wrote a checkpoint of its own; "
        "attempt 1: Changed since it was written: train data"
    )


def test_of_many_attempts_only_the_newest_are_named() -> None:
    earlier = [attempt(ordinal, started=False) for ordinal in range(1, 6)]
    sentence = said(*earlier, passed_over=tuple(passed(n) for n in range(5, 0, -1)))
    assert sentence is not None
    assert sentence.endswith(
        "attempt 3 never began to train; the checkpoints of 2 earlier attempts could not be used either"
    )


def test_a_worker_of_an_earlier_version_gives_no_reason() -> None:
    assert said(attempt(1, last_rung=100), passed_over=()) == (
        f"attempt 2 {AGAIN}attempt 1 left a checkpoint that its worker did not mention"
    )


def test_a_sweep_has_no_rung_at_which_its_first_checkpoint_comes() -> None:
    assert said(attempt(1, examples_seen=60), passed_over=(passed(1),), first_rung=None) == (
        f"attempt 2 {AGAIN}attempt 1 was lost after 60 examples, before its first checkpoint"
    )


def test_an_attempt_that_goes_on_from_an_older_checkpoint_says_what_is_wrong_with_the_newer() -> None:
    earlier = attempt(1, last_rung=100), attempt(2, last_rung=200)
    assert said(*earlier, passed_over=(passed(2, "Its SHA-256 is another"),), resumed_at=100) == (
        "attempt 3 goes on from an older checkpoint, since a newer one cannot be used: "
        "attempt 2: Its SHA-256 is another"
    )


def test_an_attempt_that_goes_on_from_the_newest_there_is_has_nothing_to_say() -> None:
    earlier = attempt(1, last_rung=100), attempt(2, resumed_at_examples=100)
    assert said(*earlier, passed_over=(passed(2),), resumed_at=100) is None


def test_a_first_attempt_has_nothing_to_go_on_from() -> None:
    assert said(passed_over=()) is None


def test_an_attempt_that_waited_for_room_says_so_of_its_own_checkpoint() -> None:
    assert said(passed_over=(passed(1),), state=AttemptState.RUNNING) == (
        f"attempt 1 {AGAIN}attempt 1 waited for a free slot at 70 examples, but there is no checkpoint in "
        "/a/1/checkpoint"
    )


def test_a_trial_whose_worker_dies_before_the_first_rung_says_that_it_begins_again(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.submit(**ONE_TRIAL)
    lab.rounds(lambda: lab.events("attempt_running") != [])
    lab.cluster.kill(lab.cluster.alive[0])
    lab.rounds(lambda: len(lab.events("attempt_running")) == 2)
    assert lab.events("checkpoint_unusable") == [
        f"attempt 2 {AGAIN}attempt 1 was lost after 0 examples, before its first checkpoint at 25 examples"
    ]
    assert lab.events("attempt_running")[1].endswith("; it begins again at 0 examples")


def test_a_damaged_checkpoint_is_said_with_the_trial_it_is_of(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(**ONE_TRIAL)
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    [first] = lab.attempts()
    lab.cluster.spoil(f"{first.artifact_dir}/checkpoint", "its SHA-256 is another")
    lab.cluster.kill(lab.cluster.alive[0])
    lab.run(study_id)
    assert lab.events("checkpoint_unusable") == [f"attempt 2 {AGAIN}attempt 1: its SHA-256 is another"]
    assert lab.attempts()[1].state == AttemptState.COMPLETED


def test_a_checkpoint_that_is_gone_is_said(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(**ONE_TRIAL)
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    [first] = lab.attempts()
    lab.cluster.remove_checkpoint(f"{first.artifact_dir}/checkpoint")
    lab.cluster.kill(lab.cluster.alive[0])
    lab.run(study_id)
    [sentence] = lab.events("checkpoint_unusable")
    assert sentence.startswith(f"attempt 2 {AGAIN}attempt 1 was lost at 50 examples, but there is no")


def test_a_trial_that_goes_on_from_its_checkpoint_has_no_such_event(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(**ONE_TRIAL)
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    lab.cluster.kill(lab.cluster.alive[0])
    lab.run(study_id)
    assert lab.events("checkpoint_unusable") == []


def test_a_running_attempt_that_is_back_at_the_beginning_stays_and_says_why(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.submit(**ONE_TRIAL)
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    [present] = lab.attempts()
    missing = UnusableCheckpoint(folder=f"{present.artifact_dir}/checkpoint", reason="", missing=True)
    event = TrialStarted(
        attempt_id=present.id,
        total_examples=100,
        total_steps=100,
        micro_batch_size=1,
        device="cpu",
        trainable_parameters=1,
        data=ROWS,
        passed_over=(missing,),
    )
    [runner] = lab.runners
    for _ in range(2):
        runner.events.on_started(event, present.last_event_seq + 1)
    [present] = lab.attempts()
    assert (present.state, present.examples_seen) == (AttemptState.RUNNING, 0)
    assert lab.events("checkpoint_unusable") == [
        f"attempt 1 {AGAIN}attempt 1 waited for a free slot at 50 examples, but there is no checkpoint in "
        f"{missing.folder}"
    ]
