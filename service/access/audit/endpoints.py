"""/v1/audit"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime

from service.access.audit import queries
from service.access.audit.schemas import AuditPage, AuditView
from service.rest.dependencies import MAX_ID, OwnerName, Reading, ServiceResources

router = APIRouter(prefix="/v1/audit", tags=["access"])

JSON_LINES = "application/jsonl"


@router.get(
    "",
    response_model=AuditPage,
    responses={
        200: {
            "content": {
                JSON_LINES: {
                    "schema": {"type": "string", "description": "With `format=jsonl`: one entry a line"}
                }
            }
        }
    },
)
def list_audit(
    session: Reading,
    resources: ServiceResources,
    owner: OwnerName | None = None,
    about: Annotated[
        str | None,
        Query(
            alias="object",
            min_length=1,
            max_length=200,
            description="Only what was done to this: the id or name of a study, schedule, key or GPU",
        ),
    ] = None,
    since: Annotated[AwareDatetime | None, Query(description="Only at this time or later")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Only before this time")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="`next_cursor` of the previous page")
    ] = None,
    output: Annotated[
        Literal["json", "jsonl"],
        Query(alias="format", description="`jsonl`: all entries from the cursor on, without pages"),
    ] = "json",
) -> Response | AuditPage:
    """Who changed what, from where, and how it ended, newest first; also logins, refused ones included."""
    filters = queries.Filters(owner=owner, about=about, since=_in_years(since), until=_in_years(until))
    if output == "jsonl":
        lines = queries.export(resources.database, filters, cursor)
        return StreamingResponse(lines, media_type=JSON_LINES)
    found = queries.list_entries(session, filters, before=cursor, limit=limit + 1)
    page = found[:limit]
    return AuditPage(
        items=[AuditView.model_validate(entry) for entry in page],
        next_cursor=page[-1].id if len(found) > limit else None,
    )


def _in_years(at: datetime | None) -> datetime | None:
    """A time that any zone can hold: the first and last days of the calendar are none in some."""
    if at is None or 1 < at.year < 9999:
        return at
    return at.replace(year=2 if at.year == 1 else 9998, day=min(at.day, 28))
