"""Schedules and their firings as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from service.answers import Answer, Open
from service.db.kinds import CatchUp, Overlap, ScheduleEventKind, UntilAction
from service.states import StudyState
from service.studies.schemas import ListedStudy


class SweepView(Answer):
    """The latest study of a schedule, in short."""

    name: str
    state: Open[StudyState]
    reason: str = Field(description="Why it is in this state, in words")


class SkipView(Answer):
    """A firing that made no sweep."""

    fired_for: datetime | None = Field(description="The cron instant")
    reason: str


class ListedSchedule(Answer):
    """A schedule in a list. Its definition is at its own address."""

    id: str
    name: str
    cron: str
    timezone: str
    enabled: bool
    owner: str = Field(description="Whose API key made it; its sweeps count for this owner")
    overlap: Open[Overlap] = Field(
        description="What a firing does while an earlier sweep is queued or running: `skip` makes none, "
        "`queue` waits for its end, `cancel_running` cancels it"
    )
    catch_up: Open[CatchUp] = Field(
        default=CatchUp.LATEST, description="Whether the latest of missed firings is made late"
    )
    start: str | None = Field(
        default=None, description="Nothing fires before this date, or date and time, in its timezone"
    )
    end: str | None = Field(default=None, description="Nothing fires after it")
    until: str | None = Field(
        default=None, description="The time of day in its timezone at which a sweep's window ends"
    )
    until_action: Open[UntilAction] | None = Field(
        default=None, description="What is done then with what is left of a sweep; null without `until`"
    )
    sweep_name: str | None = Field(
        default=None, description="The pattern of its sweeps' names; null: its name and the local time"
    )
    repeat_configurations: bool = Field(
        description="Whether sweeps evaluate again what earlier ones have evaluated on the same data"
    )
    champion: bool = Field(
        default=True, description="Whether its sweeps decide who is its champion, the best adapter so far"
    )
    tags: list[str] = Field(default=[], description="Its sweeps get them when they are made")
    note: str | None = Field(default=None, description="What people have written down about it")
    created_at: datetime
    next_fire_at: datetime | None = Field(description="null while disabled, and after its end")
    last_fired_for: datetime | None = Field(
        description="The cron instant of the latest firing that made or continued a sweep"
    )
    queued_for: datetime | None = Field(
        default=None, description="The cron instant of the firing that waits for an earlier sweep's end"
    )
    studies: int = Field(description="How many sweeps it has made")
    last_sweep: SweepView | None = Field(
        description="The latest sweep. One over its owner's limits is `failed`, and its reason says so"
    )
    last_skipped: SkipView | None = Field(
        description="The latest firing that made no sweep, since an earlier one was under way"
    )


class ScheduleView(ListedSchedule):
    definition: dict[str, Any] = Field(
        description="Of its sweeps, but for `name` and `search.seed`, which are each sweep's own"
    )


class ScheduleList(Answer):
    items: list[ListedSchedule]


class Missed(Answer):
    """Firings that made no sweep, because no coordinator was there or their window was over."""

    count: int = Field(description="Of more than 20,000: 20,000")
    first: datetime
    last: datetime


class ScheduleEventView(Answer):
    id: int
    at: datetime
    schedule: str = Field(description="The schedule's name at that time")
    schedule_id: str
    kind: Open[ScheduleEventKind]
    asked_by: str | None = Field(description="Whose API key asked for it; null: a coordinator, at its time")
    message: str
    changes: dict[str, dict[str, Any]] | None = Field(
        description="Of `changed`: each key, dotted within the definition, with `from` and `to`; long lists"
        " and texts are shortened"
    )
    fired_for: datetime | None = Field(
        description="The cron instant of the firing that it is about; of several that were missed, the last"
    )
    missed: Missed | None = Field(default=None, description="Of `missed`: how many firings")


class ScheduleHistory(Answer):
    items: list[ScheduleEventView]


class SweepRun(ListedStudy):
    """A sweep in the list of a schedule's."""

    gpu_hours: float = Field(default=0.0, description="What its trials took so far")


class SweepPage(Answer):
    items: list[SweepRun]
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get the next page; null on the last page"
    )


class FiringView(Answer):
    """A time at which a schedule fires."""

    at: datetime = Field(description="In UTC")
    local: str = Field(description="By the clocks of the timezone: 2026-10-25T02:30")
    offset: str = Field(description="Of these clocks at that time: +01:00")
    note: str | None = Field(
        description="What a change of the clocks makes of it, in words: it is moved from a time that they"
        " skip, or fires in one pass of a time that comes twice"
    )


class Firings(Answer):
    """The next firings. Fewer than were asked for: the schedule ends."""

    timezone: str
    enabled: bool = Field(description="false: they take place once the schedule is enabled")
    items: list[FiringView]
