"""/v1/schedules/{schedule}/champion"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from service.champions import commands, queries
from service.champions.schemas import ChampionHistory, ChampionView
from service.rest.dependencies import MAX_ID, Owner, Reading, ServiceSettings
from service.rest.documents import Document, request_body
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce
from service.rest.problems import declare
from service.schedules.endpoints import ScheduleRef
from service.schedules.queries import get_schedule
from service.trials import adapters

router = APIRouter(prefix="/v1/schedules/{schedule}/champion", tags=["schedules"])


@router.get("", response_model=ChampionView, responses=declare(404))
def get_champion(schedule: ScheduleRef, session: Reading) -> ChampionView:
    """The best adapter of a schedule so far, on the eval data of its latest sweep; 404 if it has none yet."""
    return queries.get_champion(session, get_schedule(session, schedule))


@router.get("/history", response_model=ChampionHistory, responses=declare(404, 422))
def list_history(
    schedule: ScheduleRef,
    session: Reading,
    before: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="Only contests with an id below")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ChampionHistory:
    """What each sweep decided, with the values of champion and challenger on its own data, and who reigned.

    It stays when the schedule is removed.
    """
    return queries.get_history(session, schedule, before=before, limit=limit)


@router.get(
    "/adapter",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A zip of adapter_config.json and adapter_model.safetensors, and of config.json if"
            " the task has a head",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **declare(404, 422),
    },
)
def get_adapter(schedule: ScheduleRef, session: Reading, settings: ServiceSettings) -> StreamingResponse:
    """The champion's adapter as a zip file, whichever trial made it."""
    found = get_schedule(session, schedule)
    reign = queries.reign_of(session, found)
    name = f"{found.name}-champion-{reign.id}.zip"
    return StreamingResponse(
        adapters.stream_zip(reign.adapter, settings),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@router.post(
    "",
    response_model=ChampionView,
    responses={200: {"headers": REPLAYED_HEADER}, **declare(400, 404, 408, 409, 413, 415, 422)},
    openapi_extra=request_body(commands.PROMOTE_SCHEMA, "Which trial, as JSON or YAML"),
)
def promote(schedule: ScheduleRef, document: Document, owner: Owner, change: ChangeOnce) -> Response:
    """Make a completed trial's best adapter the champion, whatever its values are.

    409 if it has no adapter, or one that the schedule's sweeps could not evaluate.
    """
    wanted = commands.read_promotion(document)

    def work(session: Session) -> Answer:
        found = get_schedule(session, schedule, lock=True)
        commands.promote(session, found, wanted, asked_by=owner)
        return Answer(status=200, body=queries.get_champion(session, found))

    return change.answer(work)


@router.post(
    "/rollback",
    response_model=ChampionView,
    responses={200: {"headers": REPLAYED_HEADER}, **declare(404, 408, 409, 413, 422)},
)
def roll_back(schedule: ScheduleRef, owner: Owner, change: ChangeOnce) -> Response:
    """Bring back the champion before the present one; a second time, the one before that.

    409 if there is none, or the schedule's sweeps could not evaluate it.
    """

    def work(session: Session) -> Answer:
        found = get_schedule(session, schedule, lock=True)
        commands.roll_back(session, found, asked_by=owner)
        return Answer(status=200, body=queries.get_champion(session, found))

    return change.answer(work)
