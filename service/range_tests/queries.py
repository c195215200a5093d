"""Reading range tests."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.range_tests.analysis import Corner
from search_spaces.wording import counted
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Study
from service.definitions.stored import read_definition
from service.errors import NotFound
from service.range_tests.schemas import BoundsView, CornerView, CurvePointView, ListedRangeTest, RangeTestView
from service.range_tests.sweeps import conclude, read_corners
from service.states import TERMINAL_STUDY_STATES, StudyState
from service.studies.queries import get_study
from service.studies.standing import coordinator_is_missing, dashboard_path, reason


def get_range_test(session: Session, ref: str) -> Study:
    """The range test of this name or id. Raises `NotFound`, for other studies too."""
    study = get_study(session, ref)
    if study.kind != StudyKind.RANGE_TEST:
        raise NotFound(f"{study.name!r} is a study, not a range test; see /v1/studies/{study.name}.")
    return study


def list_view(session: Session, tests: Sequence[Study]) -> list[ListedRangeTest]:
    """Range tests as lists show them, without definitions and curves."""
    query = select(Study.range_test_id, Study.name).where(Study.range_test_id.in_([t.id for t in tests]))
    parents: dict[str | None, str] = {row.range_test_id: row.name for row in session.execute(query)}
    now, missing = database_now(session), coordinator_is_missing(session, tests)
    return [
        ListedRangeTest(
            id=test.id,
            name=test.name,
            state=StudyState(test.state),
            reason=reason(test, now, coordinator_missing=missing),
            owner=test.owner,
            created_at=test.created_at,
            started_at=test.started_at,
            ended_at=test.ended_at,
            study=parents.get(test.id),
            dashboard_path=dashboard_path(test),
        )
        for test in tests
    ]


def show(session: Session, study: Study) -> RangeTestView:
    """A range test as the API shows it at its own address."""
    view = RangeTestView(
        **dict(list_view(session, [study])[0]),
        definition=study.definition,
        corners=[],
        allowed=None,
        proposed=None,
        bounds=None,
        notes=[],
    )
    definition = read_definition(study)
    test = None if definition is None else definition.search.learning_rate_range_test
    if definition is None or test is None:  # of another version: shown without what cannot be read
        return view
    corners = read_corners(session, study, definition)
    view.corners = [_corner(trial, corner) for trial, corner in enumerate(corners)]
    view.allowed = _bounds(test.within)
    if study.state == StudyState.COMPLETED:
        proposal, narrowed = conclude(definition, corners)
        view.proposed = _bounds(proposal.bounds)
        view.bounds = _bounds(narrowed.bounds) if proposal.bounds is not None else None
        view.notes = [narrowed.note, proposal.note]
    elif study.state in TERMINAL_STUDY_STATES:
        swept = sum(bool(corner.points) for corner in corners)
        view.notes = [f"{study.state}: swept {swept} of {counted(len(corners), 'corner')}"]
    return view


def _corner(trial: int, corner: Corner) -> CornerView:
    return CornerView(
        trial_number=trial,
        values=dict(corner.values),
        curve=[
            CurvePointView(learning_rate=point.learning_rate, loss=point.loss, smoothed=point.smoothed)
            for point in corner.points
        ],
        steepest=corner.steepest,
        minimum=corner.minimum,
        divergence=corner.divergence,
        note=corner.note,
    )


def _bounds(bounds: tuple[float, float] | None) -> BoundsView | None:
    return None if bounds is None else BoundsView(min=bounds[0], max=bounds[1])
