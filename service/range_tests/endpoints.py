"""/v1/range-tests

A range test is a study of its own kind: its trials and events are also under /v1/studies/{range-test},
which shows it like any other; only the list of studies leaves it out.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy.orm import Session

from search_spaces.errors import Fault
from search_spaces.range_tests.derivation import derive
from service.db.kinds import StudyKind
from service.db.models import Study
from service.definitions.acceptance import accept_definition
from service.definitions.json_schema import REF as DEFINITION
from service.errors import Invalid
from service.plans.checks import note_unchecked
from service.plans.dependencies import Checks
from service.range_tests import commands, queries
from service.range_tests.schemas import RangeTestPage, RangeTestView
from service.rest.dependencies import (
    NamePrefix,
    Owner,
    OwnerName,
    Reading,
    ServiceResources,
)
from service.rest.documents import Document, request_body
from service.rest.etags import ETAG_HEADER, IfMatch
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce
from service.rest.preconditions import etag
from service.rest.problems import declare
from service.studies.commands import request_cancel
from service.studies.endpoints import CHANGED
from service.studies.limits import Limits, require_within_limits
from service.studies.parameters import Cursor, StudyStates
from service.studies.queries import Filters, list_studies

router = APIRouter(prefix="/v1/range-tests", tags=["range tests"])

RangeTestRef = Annotated[str, Path(description="The range test's id or name")]


@router.post(
    "",
    status_code=201,
    response_model=RangeTestView,
    responses={
        201: {
            "headers": {
                "Location": {"description": "The range test's address", "schema": {"type": "string"}},
                **ETAG_HEADER,
                **REPLAYED_HEADER,
            }
        },
        **declare(400, 408, 413, 415, 422, 429),
    },
    openapi_extra=request_body(
        DEFINITION, "The definition of the study for which the range test is made, as JSON or YAML"
    ),
)
def submit(
    document: Document,
    resources: ServiceResources,
    checks: Checks,
    owner: Owner,
    change: ChangeOnce,
    dry_run: Annotated[bool, Query(include_in_schema=False)] = False,
) -> Response:
    """Sweep the learning rate for a study that need not exist. The study itself is not submitted.

    It uses the definition's model and data, the corners of its space and, if given, the
    settings under `search.learning_rate_range_test`. It is named `NAME.range-test`, or `.range-test-2` and
    so on if that name is taken.
    """
    if dry_run:
        message = "a range test has no plan; plan the study instead: POST /v1/studies?dry_run=true"
        raise Invalid("The request", [Fault(path="query.dry_run", value=True, message=message)])
    if (earlier := change.earlier_answer()) is not None:
        return earlier
    settings = resources.settings
    definition = accept_definition(document, settings.data_roots, settings.plugins)
    unchecked = checks.require_sound(definition)
    sweeps = derive(definition, definition.name)

    def work(session: Session) -> Answer:
        require_within_limits(session, owner, sweeps, Limits.of(settings))
        study = commands.make(session, definition, "submitted", owner=owner)
        note_unchecked(session, unchecked, study_id=study.id, what="this range test")
        return _answer(session, study, 201, Location=f"/v1/range-tests/{study.id}")

    return change.answer(work)


@router.get("", response_model=RangeTestPage, responses=declare(422))
def list_range_tests(
    session: Reading,
    state: StudyStates = None,
    prefix: NamePrefix | None = None,
    owner: OwnerName | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Cursor | None = None,
) -> RangeTestPage:
    """Range tests, newest first: all of them, or those that match every filter, without what they found."""
    filters = Filters(kind=StudyKind.RANGE_TEST, states=state, prefix=prefix, owner=owner)
    page = list_studies(session, filters, limit=limit, cursor=cursor)
    items = queries.list_view(session, page.studies)
    return RangeTestPage(items=items, next_cursor=page.next_cursor)


@router.get(
    "/{range_test}", response_model=RangeTestView, responses={200: {"headers": ETAG_HEADER}, **declare(404)}
)
def get_range_test(range_test: RangeTestRef, session: Reading, response: Response) -> RangeTestView:
    """One range test, by id or name."""
    found = queries.get_range_test(session, range_test)
    response.headers.update(etag(found.revision))
    return queries.show(session, found)


@router.post("/{range_test}/cancel", status_code=202, response_model=RangeTestView, responses=CHANGED)
def cancel(range_test: RangeTestRef, expected: IfMatch, change: ChangeOnce) -> Response:
    """Cancel the range test. A study that waits for it then fails."""

    def work(session: Session) -> Answer:
        found = queries.get_range_test(session, range_test)
        return _answer(session, request_cancel(session, found.id, expected), 202)

    return change.answer(work)


def _answer(session: Session, study: Study, status: int, **headers: str) -> Answer:
    """A range test as the answer to a change of it."""
    session.flush()
    shown = queries.show(session, study)
    return Answer(status=status, body=shown, headers={**etag(study.revision), **headers})
