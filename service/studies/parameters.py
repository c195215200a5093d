"""The parameters by which requests name and choose studies."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.definitions.labels import MAX_TAGS, TAG_PATTERN
from service.rest.dependencies import TrueOrFalse
from service.states import StudyState

StudyRef = Annotated[str, Path(description="The study's id or name")]
Cursor = Annotated[
    str,
    Query(
        pattern=r"^[0-9]{1,16}-[0-9a-f]{32}$",
        description="`next_cursor` of the previous page; send it with the same filters",
        examples=["1767225600000000-0123456789abcdef0123456789abcdef"],
    ),
]
StudyStates = Annotated[
    list[StudyState] | None,
    Query(description="Only those in this state; given several times: in any of these"),
]
ScheduleName = Annotated[
    str,
    Query(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$",
        description="Only those that the schedule of this name or id made",
    ),
]
Tags = Annotated[
    list[Annotated[str, Field(pattern=TAG_PATTERN)]] | None,
    Query(
        max_length=MAX_TAGS, description="Only those with this tag; given several times: with all of these"
    ),
]
Archived = Annotated[
    bool, TrueOrFalse, Query(description="`true`: those that are archived, in place of the others")
]
Deleted = Annotated[
    bool, TrueOrFalse, Query(description="`true`: those that are to be removed, in place of the others")
]


def _moment(value: object) -> object:
    """Text alone: pydantic would read numbers as seconds, too, and times without an offset as anybody's."""
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        return value
    raise _not_a_time()


def _in_range(value: datetime) -> datetime:
    """Times near the years 1 and 9999 have none in UTC."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise _not_a_time() from None


def _not_a_time() -> PydanticCustomError:
    form = "RFC 3339, such as 2026-11-30T22:00:00Z or 2026-11-30T23:00:00%2B01:00 (in an address + is %2B)"
    return PydanticCustomError("datetime_parsing", "must be a time with its offset", {"expected": form})


_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
_Moment = Annotated[AwareDatetime, BeforeValidator(_moment), AfterValidator(_in_range)]
CreatedAfter = Annotated[_Moment, Query(description="Only those submitted at this time or later (RFC 3339)")]
CreatedBefore = Annotated[_Moment, Query(description="Only those submitted before this time")]
EndedAfter = Annotated[_Moment, Query(description="Only those that ended at this time or later")]
EndedBefore = Annotated[_Moment, Query(description="Only those that ended before this time")]
DryRun = Annotated[
    bool,
    TrueOrFalse,
    Query(description="Check the definition and return a plan of the study; nothing is stored"),
]
