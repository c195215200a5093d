"""/v1/studies"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from service.db.models import Study
from service.definitions.acceptance import accept_definition
from service.definitions.json_schema import REF as DEFINITION
from service.events.parameters import wait_for_end
from service.plans import commands as plans
from service.plans.checks import note_unchecked
from service.plans.dependencies import Checks, DataReports
from service.plans.schemas import PlanView
from service.rest.conditional import NOT_MODIFIED, IfNoneMatch, answer
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
from service.studies import commands, pauses, queries
from service.studies.limits import Limits
from service.studies.parameters import (
    Archived,
    CreatedAfter,
    CreatedBefore,
    Cursor,
    Deleted,
    DryRun,
    EndedAfter,
    EndedBefore,
    ScheduleName,
    StudyRef,
    StudyStates,
    Tags,
)
from service.studies.schemas import StudyPage, StudyView

router = APIRouter(prefix="/v1/studies", tags=["studies"])

CHANGED: dict[int | str, dict[str, Any]] = {
    202: {"headers": {**ETAG_HEADER, **REPLAYED_HEADER}},
    **declare(404, 408, 409, 412, 413, 422),
}
"""The `responses` of an endpoint that asks a study for something."""


def answer_study(session: Session, study: Study, status: int, **headers: str) -> Answer:
    """A study as the answer to a change of it."""
    session.flush()
    shown = queries.show(session, study)
    return Answer(status=status, body=shown, headers={**etag(study.revision), **headers})


@router.post(
    "",
    status_code=201,
    response_model=StudyView,
    responses={
        200: {"model": PlanView, "description": "The plan, with `dry_run=true`. Nothing is stored"},
        201: {
            "headers": {
                "Location": {"description": "The study's address", "schema": {"type": "string"}},
                **ETAG_HEADER,
                **REPLAYED_HEADER,
            }
        },
        **declare(400, 408, 409, 413, 415, 422, 429),
    },
    openapi_extra=request_body(DEFINITION, "The study's definition, as JSON or YAML"),
)
def submit(
    document: Document,
    resources: ServiceResources,
    reports: DataReports,
    checks: Checks,
    owner: Owner,
    change: ChangeOnce,
    dry_run: DryRun = False,
) -> Response:
    """Submit a study, or plan it. Nothing is stored unless the whole definition is valid.

    The model and the first rows of the data are read, too: a study whose trials would all fail is refused. A
    study that could not be checked in time is accepted, and one of its events says why.

    A plan makes the same checks, but a name that is taken is only a warning in the plan. It ignores the
    owner's limits and an `Idempotency-Key`.
    """
    if dry_run:
        return JSONResponse(plans.dry_run(document, resources, reports).model_dump(mode="json"))
    if (earlier := change.earlier_answer()) is not None:
        return earlier
    settings, began = resources.settings, datetime.now(UTC)
    definition = accept_definition(document, settings.data_roots, settings.plugins)
    unchecked = checks.require_sound(definition)
    limits = Limits.of(resources.settings)

    made: list[Study] = []

    def work(session: Session) -> Answer:
        study = commands.submit(session, definition, owner=owner, limits=limits)
        note_unchecked(session, unchecked, study_id=study.id, what="this study")
        made.append(study)
        return answer_study(session, study, 201, Location=f"/v1/studies/{study.id}")

    response = change.answer(work)
    if made and resources.traces is not None:
        resources.traces.submitted(made[-1].id, made[-1].name, owner, began, datetime.now(UTC))
    return response


@router.get("", response_model=StudyPage, responses={**NOT_MODIFIED, **declare(422)})
def list_studies(
    session: Reading,
    known: IfNoneMatch,
    state: StudyStates = None,
    prefix: NamePrefix | None = None,
    owner: OwnerName | None = None,
    schedule: ScheduleName | None = None,
    created_after: CreatedAfter | None = None,
    created_before: CreatedBefore | None = None,
    ended_after: EndedAfter | None = None,
    ended_before: EndedBefore | None = None,
    tag: Tags = None,
    archived: Archived = False,
    deleted: Deleted = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Cursor | None = None,
) -> Response:
    """Studies, newest first: all of them, or those that match every filter. Definitions are not listed.

    Archived and deleted ones are left out unless they are asked for.
    """
    filters = queries.Filters(
        states=state,
        prefix=prefix,
        owner=owner,
        schedule=schedule,
        tags=tag,
        created=queries.Span(created_after, created_before),
        ended=queries.Span(ended_after, ended_before),
        archived=archived,
        deleted=deleted,
    )
    page = queries.list_studies(session, filters, limit=limit, cursor=cursor)
    items = queries.list_view(session, page.studies)
    return answer(StudyPage(items=items, next_cursor=page.next_cursor), known)


@router.get(
    "/{study}",
    response_model=StudyView,
    responses={200: {"headers": ETAG_HEADER}, **declare(404)},
    dependencies=[Depends(wait_for_end)],
)
def get_study(study: StudyRef, session: Reading, response: Response) -> StudyView:
    """One study, by id or name: at once, or with `wait` when it has ended."""
    found = queries.get_study(session, study)
    response.headers.update(etag(found.revision))
    return queries.show(session, found)


@router.post("/{study}/cancel", status_code=202, response_model=StudyView, responses=CHANGED)
def cancel(study: StudyRef, expected: IfMatch, change: ChangeOnce) -> Response:
    """Cancel the study. Its running trials are stopped and its workers ended."""
    return change.answer(
        lambda session: answer_study(session, commands.request_cancel(session, study, expected), 202)
    )


@router.post("/{study}/pause", status_code=202, response_model=StudyView, responses=CHANGED)
def pause(study: StudyRef, expected: IfMatch, change: ChangeOnce) -> Response:
    """Pause the study. Its running trials write checkpoints and its workers are ended.

    The study is `paused` at once if none of its trials run. Otherwise it is paused within seconds, and has
    `pause_requested` until then.
    """
    return change.answer(
        lambda session: answer_study(session, pauses.request_pause(session, study, expected), 202)
    )


@router.post("/{study}/resume", status_code=202, response_model=StudyView, responses=CHANGED)
def resume(study: StudyRef, expected: IfMatch, change: ChangeOnce) -> Response:
    """Resume the study: it becomes `queued`, and then continues exactly where its trials were paused."""
    return change.answer(
        lambda session: answer_study(session, pauses.request_resume(session, study, expected), 202)
    )
