"""/v1/studies"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from search_spaces.definition import StudyDefinition
from service.dependencies import MAX_ID, OptunaStorage, Reading, ServiceResources, StudyRef, Writing
from service.documents import Document, request_body
from service.plans import commands as plans
from service.plans.schemas import PlanView
from service.problems import declare
from service.states import StudyState
from service.studies import commands, queries
from service.studies.schemas import EventPage, StudyPage, StudyView

router = APIRouter(prefix="/v1/studies", tags=["studies"])

DEFINITION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A study definition. Every fault in it is answered at once.",
    "required": [name for name, field in StudyDefinition.model_fields.items() if field.is_required()],
    "properties": {name: {} for name in StudyDefinition.model_fields},
    "additionalProperties": False,
}


@router.post(
    "",
    status_code=201,
    response_model=StudyView,
    responses={
        200: {"model": PlanView, "description": "With `dry_run=true`: the plan. Nothing is stored"},
        201: {"headers": {"Location": {"description": "The study's address", "schema": {"type": "string"}}}},
        **declare(400, 409, 413, 415, 422),
    },
    openapi_extra=request_body(DEFINITION_SCHEMA, "The study's definition, as JSON or YAML"),
)
def submit(
    document: Document,
    resources: ServiceResources,
    response: Response,
    dry_run: Annotated[
        bool, Query(description="Check the definition and answer what the study would do, without a trace")
    ] = False,
) -> Any:
    """Submit a study, or plan it. Nothing is stored unless all of the definition is right.

    A plan makes the same checks, but for the name: one that is taken is a warning in the plan.
    """
    if dry_run:
        return JSONResponse(plans.dry_run(resources, document).model_dump(mode="json"))
    definition = commands.accept_definition(document, resources.settings.data_roots)
    # Not the dependency that others use: a plan takes seconds, and no transaction may be open that long.
    with resources.database.write() as session:
        study = commands.submit(session, definition)
        response.headers["Location"] = f"/v1/studies/{study.id}"
        return queries.show(session, resources.storage, [study])[0]


@router.get("", response_model=StudyPage, responses=declare(422))
def list_studies(
    session: Reading,
    storage: OptunaStorage,
    state: StudyState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> StudyPage:
    """All studies, newest first."""
    page = queries.list_studies(session, state=state, limit=limit, cursor=cursor)
    return StudyPage(items=queries.show(session, storage, page.studies), next_cursor=page.next_cursor)


@router.get("/{study}", response_model=StudyView, responses=declare(404))
def get_study(study: StudyRef, session: Reading, storage: OptunaStorage) -> StudyView:
    """One study, by id or name."""
    return queries.show(session, storage, [queries.get_study(session, study)])[0]


@router.post("/{study}/cancel", status_code=202, response_model=StudyView, responses=declare(404, 409))
def cancel(study: StudyRef, session: Writing, storage: OptunaStorage) -> StudyView:
    """Ask for the study's end. Its running trials are stopped and its workers given back."""
    return queries.show(session, storage, [commands.request_cancel(session, study)])[0]


@router.get("/{study}/events", response_model=EventPage, responses=declare(404, 422))
def list_events(
    study: StudyRef,
    session: Reading,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="The last event's id that you have")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> EventPage:
    """What happened in the study, oldest first."""
    found = queries.get_study(session, study)
    return EventPage(items=queries.list_events(session, found, after=after, limit=limit))
