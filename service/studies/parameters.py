"""The parameters by which requests name and choose studies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

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
DryRun = Annotated[
    bool,
    TrueOrFalse,
    Query(description="Check the definition and return a plan of the study; nothing is stored"),
]
