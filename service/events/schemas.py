"""Events as the REST API shows them."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from service.answers import Answer


class EventView(Answer):
    """One thing that happened to a study, a trial, a schedule or the cluster."""

    id: int = Field(
        description="Its place in the order in which all events were committed: whoever has this one has had "
        "all with lower ids. Ids grow and have gaps"
    )
    at: datetime
    trial_number: int | None
    kind: str = Field(description="One of those in docs/reference/events.md; a newer server may have others")
    message: str
    study: str | None = Field(default=None, description="The name of the study that it happened to")
    study_id: str | None = None
    schedule: str | None = Field(
        default=None, description="The name of the schedule, also of the one that made the study"
    )
    schedule_id: str | None = None
    owner: str | None = Field(default=None, description="The owner of the study or schedule")


class EventPage(Answer):
    items: list[EventView]
    next_cursor: str | None = Field(
        default=None, description="Pass it as `cursor` to get the next page; null on the last page"
    )
    last_id: int = Field(
        default=0,
        description="All events up to this id have been looked at; pass it as `after` to get what comes then",
    )
