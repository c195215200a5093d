"""Reading events in the order in which they were committed, across studies and schedules.

A position becomes visible after all lower ones (`EventCounter`), so the newest one is read first, and then
all up to it: nothing below can still appear.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Select, String, cast, literal, null, or_, select, union_all
from sqlalchemy.orm import Session

from service.db import rows
from service.db.models import EventCounter, EventRow, Schedule, ScheduleEvent, Study
from service.errors import NotFound
from service.events.kinds import SCHEDULE
from service.events.schemas import EventView
from service.states import TERMINAL_STUDY_STATES


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which events: those that match everything that is given."""

    kinds: frozenset[str] = frozenset()
    """Any of these; empty: of every kind."""
    study: str | None = None
    """Name or id. A name may be one that no study has yet."""
    owner: str | None = None
    schedule: str | None = None
    """Name or id, of the schedule itself or of the one that made the study."""
    study_id: str | None = None
    """Of the study that is there already; `resolved` finds it."""
    schedule_id: str | None = None
    """Likewise: the schedule may have had another name when it made a study."""

    def match(self, event: EventView) -> bool:
        """As `_of_studies` and `_of_schedules` select."""
        if self.kinds and event.kind not in self.kinds:
            return False
        if self.owner is not None and event.owner != self.owner:
            return False
        if self.study_id is not None:
            if event.study_id != self.study_id:
                return False
        elif self.study is not None and self.study not in (event.study, event.study_id):
            return False
        if self.schedule is None:
            return True
        known = self.schedule_id is not None and event.schedule_id == self.schedule_id
        return known or self.schedule in (event.schedule, event.schedule_id)


EVERYTHING = Filters()


@dataclass(frozen=True)
class Event:
    """One event, and how a stream sends it."""

    view: EventView

    @cached_property
    def message(self) -> bytes:
        """A message of a `text/event-stream`: one line of ASCII, so that nobody sees a line break in it."""
        data = json.dumps(self.view.model_dump(mode="json"), separators=(",", ":"))
        return f"id: {self.view.id}\ndata: {data}\n\n".encode()


@dataclass(frozen=True, kw_only=True)
class Page:
    events: Sequence[Event]
    """By id."""
    upto: int
    """There is none between the last one and this id that matches."""
    more: bool
    """Whether there may be some above `upto`."""


def newest(session: Session) -> int:
    """The id of the newest event of all; 0 before the first."""
    return session.scalars(select(EventCounter.last)).one_or_none() or 0


def find_study(session: Session, ref: str) -> str:
    """The id of the study of this name or id. Raises `NotFound`."""
    found = rows.find(session, Study, ref)
    if found is None:
        raise NotFound(f"There is no study {ref[:200]!r}.")
    return found.id


def find_running(session: Session, ref: str) -> str | None:
    """The id of the study of this name or id; None if there is none, or it has ended."""
    found = rows.find(session, Study, ref)
    return None if found is None or found.state in TERMINAL_STUDY_STATES else found.id


def resolved(session: Session, filters: Filters) -> Filters:
    """The same with the ids of the study and schedule that are there now."""
    study = None if filters.study is None else rows.find(session, Study, filters.study)
    schedule = None if filters.schedule is None else rows.find(session, Schedule, filters.schedule)
    return replace(
        filters,
        study_id=filters.study_id if study is None else study.id,
        schedule_id=None if schedule is None else schedule.id,
    )


def read_page(session: Session, filters: Filters, *, after: int, limit: int) -> Page:
    """At most `limit` events that match, with ids above `after`, the oldest first."""
    head = newest(session)
    if head <= after:
        return Page(events=(), upto=after, more=False)
    queries = [query.limit(limit + 1) for query in _selected(filters, after, head)]
    if not queries:
        return Page(events=(), upto=head, more=False)
    if len(queries) == 1:
        query: Select[*tuple[Any, ...]] = queries[0]
    else:
        both = union_all(*(select(one.subquery()) for one in queries)).subquery()
        query = select(both).order_by(both.c.id).limit(limit + 1)
    views = [EventView.model_validate(row) for row in session.execute(query)]
    more = len(views) > limit
    views = views[:limit]
    return Page(events=[Event(view) for view in views], upto=views[-1].id if more else head, more=more)


def _selected(filters: Filters, after: int, head: int) -> Iterator[Select[*tuple[Any, ...]]]:
    kinds = filters.kinds
    of_schedules = {kind.removeprefix(SCHEDULE) for kind in kinds if kind.startswith(SCHEDULE)}
    of_studies = {kind for kind in kinds if not kind.startswith(SCHEDULE)}
    if not kinds or of_studies:
        conditions = [EventRow.position > after, EventRow.position <= head, *_of_studies(filters, of_studies)]
        yield _STUDIES.where(*conditions).order_by(EventRow.position)
    if (not kinds or of_schedules) and filters.study is None and filters.study_id is None:
        place = ScheduleEvent.position
        conditions = [place > after, place <= head, *_of_schedules(filters, of_schedules)]
        yield _SCHEDULES.where(*conditions).order_by(place)


def _of_studies(filters: Filters, kinds: set[str]) -> Iterator[ColumnElement[bool]]:
    if kinds:
        yield EventRow.kind.in_(kinds)
    if filters.owner is not None:
        yield Study.owner == filters.owner
    if filters.study_id is not None:
        yield EventRow.study_id == filters.study_id
    elif filters.study is not None:
        yield or_(Study.id == filters.study, Study.name == filters.study)
    if filters.schedule is not None:
        ids = {filters.schedule, filters.schedule_id} - {None}
        yield or_(Study.schedule_name == filters.schedule, Study.schedule_id.in_(ids))


def _of_schedules(filters: Filters, kinds: set[str]) -> Iterator[ColumnElement[bool]]:
    if kinds:
        yield ScheduleEvent.kind.in_(kinds)
    if filters.owner is not None:
        yield ScheduleEvent.owner == filters.owner
    if filters.schedule is not None:
        ids = {filters.schedule, filters.schedule_id} - {None}
        yield or_(ScheduleEvent.schedule_name == filters.schedule, ScheduleEvent.schedule_id.in_(ids))


_STUDIES = select(
    EventRow.position.label("id"),
    EventRow.at.label("at"),
    EventRow.trial_number.label("trial_number"),
    EventRow.kind.label("kind"),
    EventRow.message.label("message"),
    Study.name.label("study"),
    EventRow.study_id.label("study_id"),
    Study.schedule_name.label("schedule"),
    Study.schedule_id.label("schedule_id"),
    Study.owner.label("owner"),
).join(Study, Study.id == EventRow.study_id, isouter=True)

_SCHEDULES = select(
    ScheduleEvent.position.label("id"),
    ScheduleEvent.at.label("at"),
    cast(null(), EventRow.trial_number.type).label("trial_number"),
    (literal(SCHEDULE) + ScheduleEvent.kind).label("kind"),
    ScheduleEvent.message.label("message"),
    cast(null(), String).label("study"),
    cast(null(), String).label("study_id"),
    ScheduleEvent.schedule_name.label("schedule"),
    ScheduleEvent.schedule_id.label("schedule_id"),
    ScheduleEvent.owner.label("owner"),
)
