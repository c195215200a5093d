"""The sweeps of a range test so far, read from its attempts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.range_tests.analysis import Corner, Narrowed, Proposal, analyse, narrow, propose
from search_spaces.range_tests.derivation import scaling
from service.db.models import Attempt, Study
from service.states import LIVE_ATTEMPT_STATES, AttemptState


def read_corners(session: Session, study: Study, definition: StudyDefinition) -> list[Corner]:
    """One corner for each of the range test's trials, in their order. One without a curve says why.

    Rates are those that a recipe states: where the learning rate is scaled with the batch size, what the
    optimizer stepped with is divided by the scale.
    """
    test = definition.search.learning_rate_range_test
    assert test is not None  # a range test always has one
    attempts = session.scalars(
        select(Attempt).where(Attempt.study_id == study.id).order_by(Attempt.trial_number, Attempt.ordinal)
    )
    latest = {attempt.trial_number: attempt for attempt in attempts}
    corners = []
    for number, values in enumerate(definition.search.space.grid_points()):
        attempt = latest.get(number)
        curve = _curve(attempt)
        if curve and attempt is not None and attempt.state == AttemptState.COMPLETED:
            scale = scaling(definition, values)
            scaled = [(rate / scale, loss) for rate, loss in curve]
            corners.append(analyse(scaled, values, steps=test.steps))
        else:
            corners.append(Corner(values=values, points=(), note=_why_none(attempt)))
    return corners


def conclude(definition: StudyDefinition, corners: list[Corner]) -> tuple[Proposal, Narrowed]:
    """What the corners propose, and what of it the study's own bounds leave."""
    test = definition.search.learning_rate_range_test
    assert test is not None
    proposal = propose(corners)
    return proposal, narrow(proposal.bounds, test.within, widen=test.widen)


def _curve(attempt: Attempt | None) -> list[tuple[float, float | None]]:
    outcome: dict[str, Any] = (attempt and attempt.outcome) or {}
    return [(rate, loss) for rate, loss in outcome.get("rate_curve") or ()]


def _why_none(attempt: Attempt | None) -> str:
    if attempt is None:
        return "not swept"
    if attempt.state in LIVE_ATTEMPT_STATES:
        return "being swept"
    return f"no curve: {attempt.state}: {attempt.reason}".rstrip(": ")
