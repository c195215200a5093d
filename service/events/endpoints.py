"""/v1/events, and the events of a study"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from service.events.broadcaster import Broadcaster
from service.events.parameters import (
    After,
    Chosen,
    Cursor,
    Events,
    Heartbeat,
    Kinds,
    LastEventId,
    Limit,
    StudyRef,
    Wait,
)
from service.events.queries import Filters, find_study, newest, read_page
from service.events.schemas import EventPage
from service.events.stream import HEARTBEAT_SECONDS, MEDIA_TYPE, EventStream, wants_stream
from service.rest.dependencies import ServiceResources
from service.rest.problems import declare

router = APIRouter(tags=["events"])

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        "description": "Messages with `id` and `data`, an event as JSON, until the client leaves",
    }
}


@router.get("/v1/events", response_model=EventPage, responses={**_STREAM, **declare(422)})
async def list_all_events(
    request: Request,
    events: Events,
    resources: ServiceResources,
    filters: Chosen,
    after: After = None,
    cursor: Cursor | None = None,
    limit: Limit = 1000,
    wait: Wait = 0.0,
    last_event_id: LastEventId = None,
) -> Response:
    """What happened to all studies and schedules, oldest first: a page, or a long poll with `wait`.

    To follow it, ask again with `last_id` as `after`. No event is left out or given twice by that, whatever
    happens at the same time. With `Accept: text/event-stream` the answer is the stream of
    `/v1/events/stream`.
    """
    start = _start(after, cursor)
    if wants_stream(request):
        return await _stream(request, events, filters, start, last_event_id, HEARTBEAT_SECONDS)
    return await _page(events, resources, filters, start or 0, limit, wait)


@router.get(
    "/v1/events/stream",
    status_code=200,
    response_class=EventStream,
    responses={**_STREAM, **declare(422)},
)
async def stream_all_events(
    request: Request,
    events: Events,
    filters: Chosen,
    after: After = None,
    last_event_id: LastEventId = None,
    heartbeat: Heartbeat = HEARTBEAT_SECONDS,
) -> Response:
    """What happens to all studies and schedules, as server-sent events."""
    return await _stream(request, events, filters, after, last_event_id, heartbeat)


@router.get(
    "/v1/studies/{study}/events", response_model=EventPage, responses={**_STREAM, **declare(404, 422)}
)
async def list_events(
    request: Request,
    study: StudyRef,
    events: Events,
    resources: ServiceResources,
    kind: Kinds = None,
    after: After = None,
    cursor: Cursor | None = None,
    limit: Limit = 1000,
    wait: Wait = 0.0,
    last_event_id: LastEventId = None,
) -> Response:
    """What happened in the study, oldest first: a page, or a long poll with `wait`.

    With `Accept: text/event-stream` the answer is the stream of `/v1/studies/{study}/events/stream`.
    """
    filters, start = await _of_study(events, study, kind), _start(after, cursor)
    if wants_stream(request):
        return await _stream(request, events, filters, start, last_event_id, HEARTBEAT_SECONDS)
    return await _page(events, resources, filters, start or 0, limit, wait)


@router.get(
    "/v1/studies/{study}/events/stream",
    status_code=200,
    response_class=EventStream,
    responses={**_STREAM, **declare(404, 422)},
)
async def stream_events(
    request: Request,
    study: StudyRef,
    events: Events,
    kind: Kinds = None,
    after: After = None,
    last_event_id: LastEventId = None,
    heartbeat: Heartbeat = HEARTBEAT_SECONDS,
) -> Response:
    """What happens in the study, as server-sent events."""
    filters = await _of_study(events, study, kind)
    return await _stream(request, events, filters, after, last_event_id, heartbeat)


async def _of_study(events: Broadcaster, study: str, kinds: Kinds) -> Filters:
    study_id = await events.read(lambda session: find_study(session, study))
    return Filters(kinds=frozenset(kinds or ()), study_id=study_id)


def _start(after: int | None, cursor: str | None) -> int | None:
    """A cursor goes before the `after` with which the first page was asked for."""
    return after if cursor is None else int(cursor)


async def _page(
    events: Broadcaster,
    resources: ServiceResources,
    filters: Filters,
    after: int,
    limit: int,
    wait: float,
) -> Response:
    if wait:
        with events.follow(filters, after) as follower:
            await follower.next(wait)

    def body() -> bytes:
        with resources.database.read() as session:
            page = read_page(session, filters, after=after, limit=limit)
        answer = EventPage(
            items=[event.view for event in page.events],
            next_cursor=str(page.upto) if page.more else None,
            last_id=page.upto,
        )
        return answer.model_dump_json().encode()

    return Response(await run_in_threadpool(body), media_type="application/json", headers={"Vary": "Accept"})


async def _stream(
    request: Request,
    events: Broadcaster,
    filters: Filters,
    after: int | None,
    last_event_id: str | None,
    heartbeat: float,
) -> Response:
    if last_event_id is not None:
        after = int(last_event_id)
    elif after is None:
        after = await events.read(newest)
    return EventStream(request, events, filters, after=after, heartbeat=heartbeat)
