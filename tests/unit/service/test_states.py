"""The tables of allowed moves."""

from __future__ import annotations

from service.states import (
    ACTIVE_STUDY_STATES,
    ATTEMPT_TRANSITIONS,
    LIVE_ATTEMPT_STATES,
    STUDY_TRANSITIONS,
    TERMINAL_ATTEMPT_STATES,
    TERMINAL_STUDY_STATES,
    AttemptState,
    StudyState,
)


def test_every_state_has_its_row() -> None:
    assert set(STUDY_TRANSITIONS) == set(StudyState)
    assert set(ATTEMPT_TRANSITIONS) == set(AttemptState)


def test_a_state_is_over_exactly_when_nothing_follows_it_by_itself() -> None:
    extended = {StudyState.QUEUED}  # which takes a person
    over = {s for s, following in STUDY_TRANSITIONS.items() if following <= extended}
    assert over == TERMINAL_STUDY_STATES
    assert {s for s, following in ATTEMPT_TRANSITIONS.items() if not following} == TERMINAL_ATTEMPT_STATES


def test_a_state_is_either_going_on_or_over() -> None:
    assert set(StudyState) == ACTIVE_STUDY_STATES ^ TERMINAL_STUDY_STATES
    assert set(AttemptState) == LIVE_ATTEMPT_STATES ^ TERMINAL_ATTEMPT_STATES


def test_from_every_state_an_end_can_be_reached() -> None:
    for table, ends in (
        (STUDY_TRANSITIONS, TERMINAL_STUDY_STATES),
        (ATTEMPT_TRANSITIONS, TERMINAL_ATTEMPT_STATES),
    ):
        for state, following in table.items():
            assert state in ends or following & ends
