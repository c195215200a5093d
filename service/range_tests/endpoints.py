"""/v1/range-tests

A range test is a study of its own kind: its trials and events are also under /v1/studies/{range-test},
which shows it like any other; only the list of studies leaves it out.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from search_spaces.errors import Fault
from service.dependencies import OptunaStorage, Reading, ServiceSettings, Writing
from service.documents import Document, request_body
from service.errors import Invalid
from service.models import StudyKind
from service.problems import declare
from service.range_tests import commands, queries
from service.range_tests.schemas import RangeTestPage, RangeTestView
from service.states import StudyState
from service.studies.commands import accept_definition, request_cancel
from service.studies.endpoints import DEFINITION_SCHEMA
from service.studies.queries import list_studies

router = APIRouter(prefix="/v1/range-tests", tags=["range tests"])

RangeTestRef = Annotated[str, Path(description="The range test's id or name")]


@router.post(
    "",
    status_code=201,
    response_model=RangeTestView,
    responses={
        201: {
            "headers": {"Location": {"description": "The range test's address", "schema": {"type": "string"}}}
        },
        **declare(400, 413, 415, 422),
    },
    openapi_extra=request_body(DEFINITION_SCHEMA, "The definition of the study it is for, as JSON or YAML"),
)
def submit(
    document: Document,
    session: Writing,
    storage: OptunaStorage,
    settings: ServiceSettings,
    response: Response,
    dry_run: Annotated[bool, Query(include_in_schema=False)] = False,
) -> RangeTestView:
    """Sweep the learning rate for a study that need not exist. The study itself is not submitted.

    Of the definition it takes the model, the data, the corners of the space and, if there is one, the
    settings under `search.learning_rate_range_test`. It is named `NAME.range-test`, and `.range-test-2` and
    so on where that is taken.
    """
    if dry_run:
        message = "a range test has no plan; plan the study instead: POST /v1/studies?dry_run=true"
        raise Invalid("The request", [Fault(path="query.dry_run", value=True, message=message)])
    definition = accept_definition(document, settings.data_roots)
    study = commands.make(session, definition, "submitted")
    response.headers["Location"] = f"/v1/range-tests/{study.id}"
    return queries.show(session, storage, [study])[0]


@router.get("", response_model=RangeTestPage, responses=declare(422))
def list_range_tests(
    session: Reading,
    storage: OptunaStorage,
    state: StudyState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> RangeTestPage:
    """All range tests, newest first."""
    page = list_studies(session, state=state, limit=limit, cursor=cursor, kind=StudyKind.RANGE_TEST)
    return RangeTestPage(items=queries.show(session, storage, page.studies), next_cursor=page.next_cursor)


@router.get("/{range_test}", response_model=RangeTestView, responses=declare(404))
def get_range_test(range_test: RangeTestRef, session: Reading, storage: OptunaStorage) -> RangeTestView:
    """One range test, by id or name."""
    return queries.show(session, storage, [queries.get_range_test(session, range_test)])[0]


@router.post(
    "/{range_test}/cancel", status_code=202, response_model=RangeTestView, responses=declare(404, 409)
)
def cancel(range_test: RangeTestRef, session: Writing, storage: OptunaStorage) -> RangeTestView:
    """Ask for the range test's end. A study that waits for it then fails."""
    study = queries.get_range_test(session, range_test)
    return queries.show(session, storage, [request_cancel(session, study.id)])[0]
