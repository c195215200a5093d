"""The parameters by which requests choose events and say how long they wait."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

from service.events.broadcaster import Broadcaster
from service.events.kinds import STUDY_ENDS, Kind
from service.events.queries import Filters, find_running, newest, resolved
from service.rest.dependencies import OwnerName

MAX_POSITION = 2**53 - 1
"""What JavaScript can count to; as milliseconds it is the year 287396."""
MAX_WAIT_SECONDS = 120.0

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"

StudyRef = Annotated[str, Path(description="The study's id or name")]
Kinds = Annotated[
    list[Kind] | None,
    Query(description="Only events of this kind; given several times: of any of these", max_length=100),
]
After = Annotated[
    int | None,
    Query(
        ge=0,
        le=MAX_POSITION,
        description="Return only events after the one with this id; 0: from the first on. Without it lists "
        "begin with the first event, and streams with what happens from now on",
    ),
]
Cursor = Annotated[
    str,
    Query(
        pattern=r"^[0-9]{1,16}$",
        description="`next_cursor` of the previous page; it goes before the `after` of the first",
        examples=["1767225600000"],
    ),
]
LastEventId = Annotated[
    str | None,
    Header(
        pattern=r"^[0-9]{1,16}$",
        description="The id of the last event that was received. It goes before `after`, since a browser "
        "that connects again sends the same address",
        examples=["1767225600000"],
    ),
]
Limit = Annotated[int, Query(ge=1, le=1000)]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="Seconds to wait for an event if there is none; the answer is empty if none has come",
    ),
]
Heartbeat = Annotated[
    float, Query(ge=1, le=60, description="Seconds without an event after which a comment is sent")
]


async def _broadcaster(request: Request) -> Broadcaster:
    found: Broadcaster = request.app.state.broadcaster
    return found


Events = Annotated[Broadcaster, Depends(_broadcaster)]


async def _filters(
    events: Events,
    kind: Kinds = None,
    study: Annotated[
        str | None,
        Query(pattern=_NAME, description="Only those of the study of this name or id, now or later"),
    ] = None,
    owner: OwnerName | None = None,
    schedule: Annotated[
        str | None,
        Query(pattern=_NAME, description="Only those of the schedule of this name or id, and of its sweeps"),
    ] = None,
) -> Filters:
    filters = Filters(kinds=frozenset(kind or ()), study=study, owner=owner, schedule=schedule)
    if study is None and schedule is None:
        return filters
    return await events.read(lambda session: resolved(session, filters))


Chosen = Annotated[Filters, Depends(_filters)]
"""The filters of a request for everybody's events."""


async def wait_for_end(
    study: StudyRef,
    events: Events,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=MAX_WAIT_SECONDS,
            description="Seconds to wait for the study's end, if it has not ended; the answer is the study "
            "as it is then",
        ),
    ] = 0.0,
) -> None:
    """Wait until the study has ended, without a thread or a connection to the database.

    For the `dependencies` of an endpoint, which then are the first to be called.
    """
    if not wait:
        return
    upto = await events.read(newest)  # before the study is looked at: its end must come after one of the two
    study_id = await events.read(lambda session: find_running(session, study))
    if study_id is None:
        return
    with events.follow(Filters(kinds=STUDY_ENDS, study_id=study_id), upto) as follower:
        await follower.next(wait)
