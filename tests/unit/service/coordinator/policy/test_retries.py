"""What a trial's losses mean: what counts, how long it rests, who is a suspect, and who is poisonous."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.coordinator.policy.retries import (
    RUNGS_SO_FAR,
    Deaths,
    Losses,
    losses,
    points_reached,
    rest_seconds,
    storage_trouble,
)
from service.db.models import Attempt
from service.states import AttemptState, LossCause

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)
DIED, NODE, UNREACHABLE = LossCause.WORKER_DIED, LossCause.NODE_DIED, LossCause.UNREACHABLE
NEVER, STORAGE = LossCause.NEVER_ARRIVED, LossCause.STORAGE


def lost(cause: LossCause | None, at: int | None = 0, *, resumed: int = 0, **columns: Any) -> Attempt:
    """An attempt that was lost after that rung; None: it never started."""
    known: dict[str, Any] = {
        "state": AttemptState.LOST,
        "loss_cause": cause,
        "started_at": None if at is None else LONG_AGO,
        "last_rung": at or 0,
        "resumed_at_examples": resumed,
        "ended_at": LONG_AGO,
        "reason": "lost",
    }
    return Attempt(**{**known, **columns})


def live(at: int | None = None, resumed: int = 0) -> Attempt:
    state = AttemptState.DISPATCHED if at is None else AttemptState.RUNNING
    return lost(None, at, resumed=resumed, state=state, ended_at=None)


def paused(at: int) -> Attempt:
    return lost(None, 0, resumed=at, state=AttemptState.PAUSED)


def of(*tries: Attempt, mates: dict[int, int] | None = None, now: datetime = NOW) -> Losses:
    """The losses of a trial; of its attempts, counted from 0, some had mates that ended with them."""
    others = []
    for number, attempt in enumerate(tries):
        attempt.worker_id, attempt.id = f"w{number}", number
        for _ in range((mates or {}).get(number, 0)):
            others.append(Attempt(worker_id=attempt.worker_id, ended_at=attempt.ended_at))
    return losses(tries, Deaths([*tries, *others]), now)


def test_only_a_death_of_the_worker_and_its_silence_count() -> None:
    counted = {cause: of(lost(cause)).counted for cause in LossCause}
    assert counted == {DIED: 1, UNREACHABLE: 1, LossCause.STALLED: 1, NODE: 0, NEVER: 0, STORAGE: 0}


def test_a_loss_from_before_causes_were_kept_counts_as_it_did_then() -> None:
    assert of(lost(None), lost(None)).counted == 2


def test_a_trial_without_a_loss_is_as_free_as_one_that_is_new() -> None:
    assert of() == of(live()) == of(paused(50)) == Losses()


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        ([lost(DIED, 50)], [50]),
        ([lost(DIED, 25, resumed=50)], [50]),
        ([lost(DIED, 50), lost(DIED, None)], [50, 50]),
        ([lost(DIED, 50), lost(DIED, 0)], [50, 0]),
        ([lost(NEVER, None), live(), live(75, 50)], [0, 0, 75]),
    ],
    ids=["a rung", "a checkpoint", "never started", "its checkpoint was gone", "alive"],
)
def test_an_attempt_is_at_its_last_rung_or_where_it_went_on_from(
    tries: list[Attempt], expected: list[int]
) -> None:
    assert points_reached(tries) == expected


# -- back-off ----------------------------------------------------------------------------------------


def test_the_back_off_doubles_with_each_loss_that_counts_up_to_a_minute() -> None:
    rests = [rest_seconds([lost(DIED, rung) for rung in range(n)]) for n in range(9)]
    assert rests == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert rest_seconds([lost(DIED, rung) for rung in range(5000)]) == 60.0


def test_a_loss_that_does_not_count_is_waited_for_only_when_it_comes_again() -> None:
    rests = [rest_seconds([lost(DIED), *[lost(NODE)] * n]) for n in range(1, 9)]
    assert rests == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


def test_a_pause_is_nothing_to_rest_from() -> None:
    assert rest_seconds([lost(DIED), paused(0)]) == 0.0


@pytest.mark.parametrize(("seconds", "rested"), [(0.0, False), (1.9, False), (2.0, True), (-3600.0, True)])
def test_a_trial_rests_from_the_end_of_its_last_attempt_on(seconds: float, rested: bool) -> None:
    """The last: the clock was put back by an hour, which must not cost the trial that hour."""
    tries = [lost(DIED, 25), lost(DIED, 50, ended_at=NOW - timedelta(seconds=seconds))]
    assert of(*tries).rested is rested


# -- suspects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tries", "suspect"),
    [
        ([lost(DIED, 50)], True),
        ([lost(DIED, 50), live()], True),
        ([lost(DIED, 50), live(50, 50)], True),
        ([lost(DIED, 50), live(0, 0)], True),
        ([lost(DIED, 50), live(75, 50)], False),
        ([lost(DIED, 50), lost(NODE, 50)], True),
        ([lost(DIED, 50), paused(60)], False),
        ([lost(NODE, 50)], False),
        ([lost(UNREACHABLE, 50)], False),
        ([lost(DIED, 50), lost(NODE, 75), live()], False),
        ([lost(DIED, 50), lost(NODE, 75), live(25)], True),
        ([lost(DIED, 50), lost(DIED, 75), live(75)], True),
    ],
)
def test_who_was_on_a_worker_that_died_is_a_suspect_until_past_that_place(
    tries: list[Attempt], suspect: bool
) -> None:
    assert of(*tries).suspect is suspect


# -- poison ------------------------------------------------------------------------------------------

POISON = (
    "poisonous: its worker died 2 times in a row at the same point, {}, "
    "the last time with no other trial on it"
)


def test_two_deaths_at_one_place_are_poison() -> None:
    assert of(lost(DIED, 50), lost(DIED, 50)).poison == POISON.format("after 50 examples")
    assert of(lost(DIED), lost(DIED)).poison == POISON.format("before its first rung")


def test_a_death_while_the_checkpoint_is_loaded_is_a_death_at_its_place() -> None:
    assert of(lost(DIED, 50), lost(DIED, None)).poison == POISON.format("after 50 examples")


def test_the_first_death_may_have_been_a_mate_s_doing_but_not_the_last() -> None:
    tries = [lost(DIED, 50), lost(DIED, 50)]
    assert of(*tries, mates={0: 3}).poison == POISON.format("after 50 examples")
    assert of(*tries, mates={0: 3, 1: 1}).poison is None
    assert of(*tries, mates={1: 3}).poison is None


@pytest.mark.parametrize(
    "tries",
    [
        [lost(DIED, 50)],
        [lost(DIED, 50), lost(DIED, 75)],
        [lost(DIED, 50), lost(DIED, 25)],
        [lost(DIED, 50), lost(NODE, 75), lost(DIED, 50)],
        [lost(DIED, 50), lost(NODE, 50)],
        [lost(UNREACHABLE, 50), lost(UNREACHABLE, 50)],
        [lost(DIED, 50), lost(UNREACHABLE, 50)],
        [lost(None, 50), lost(None, 50)],
    ],
    ids=[
        "once",
        "further on",
        "further back",
        "it had got on between",
        "the machine went away",
        "silent twice",
        "silent the second time",
        "nobody knows why",
    ],
)
def test_what_is_not_poison(tries: list[Attempt]) -> None:
    assert of(*tries).poison is None


@pytest.mark.parametrize("between", [lost(NODE, 50), lost(NEVER, None), lost(STORAGE, 50), paused(50)])
def test_what_happens_at_the_same_place_between_two_deaths_changes_nothing(between: Attempt) -> None:
    assert of(lost(DIED, 50), between, lost(DIED, 50)).poison == POISON.format("after 50 examples")


def test_a_live_attempt_is_not_judged() -> None:
    assert of(lost(DIED, 50), lost(DIED, 50), live(50, 50)).poison is None


def test_ten_losses_at_one_place_are_poison_whatever_their_causes() -> None:
    tries = [lost(UNREACHABLE, 50), *(lost(NODE, 50) for _ in range(8))]
    assert of(*tries).poison is None
    assert of(*tries, lost(NODE, 50)).poison == (
        "poisonous: it was lost 10 times in a row at the same point, after 50 examples "
        "(9 node died, 1 unreachable)"
    )
    assert of(*tries, lost(NODE, 75)).poison is None


@pytest.mark.parametrize("cause", [NEVER, STORAGE])
def test_orders_that_never_arrived_and_folders_that_failed_make_no_poison(cause: LossCause) -> None:
    tries = [lost(NODE, 50) for _ in range(9)]
    assert of(*tries, *(lost(cause, 50) for _ in range(20))).poison is None


# -- storage -----------------------------------------------------------------------------------------


def fault(minute: int, rungs: int = 4) -> Attempt:
    at = LONG_AGO + timedelta(minutes=minute)
    return lost(STORAGE, ended_at=at, id=minute, reason=f"disk full {minute}", outcome={RUNGS_SO_FAR: rungs})


def test_three_attempts_that_could_not_write_put_the_study_down() -> None:
    faults = [fault(3), fault(1), fault(2), lost(DIED)]
    said = "3 attempts in a row could not write their artifacts; the last reason: disk full 3"
    assert storage_trouble(faults, rungs=lambda: 4, resumed_at=None) == said
    assert storage_trouble(faults[1:], rungs=lambda: 4, resumed_at=None) is None


def test_a_rung_since_then_shows_that_it_can_be_written_again() -> None:
    faults = [fault(1), fault(2), fault(3)]
    assert storage_trouble(faults, rungs=lambda: 5, resumed_at=None) is None
    assert storage_trouble([*faults[:2], fault(3, 5)], rungs=lambda: 5, resumed_at=None) is None


def test_what_was_before_a_resume_does_not_put_the_study_down_again() -> None:
    faults = [fault(1), fault(2), fault(3)]
    resumed_at = LONG_AGO + timedelta(minutes=2)
    assert storage_trouble(faults, rungs=lambda: 4, resumed_at=resumed_at) is None
    faults += [fault(4), fault(5)]
    assert storage_trouble(faults, rungs=lambda: 4, resumed_at=resumed_at) is not None


def test_rungs_are_not_counted_while_there_is_no_trouble() -> None:
    def unexpected() -> int:
        raise AssertionError

    assert storage_trouble([fault(1), fault(2), lost(NODE)], rungs=unexpected, resumed_at=None) is None
