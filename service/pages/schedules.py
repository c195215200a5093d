"""A schedule's report as a page: its sweeps night after night, what was skipped, when its data changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from search_spaces.wording import counted
from service.champions.queries import get_history
from service.champions.schemas import ContestView, ReignView
from service.db.database import database_now
from service.db.kinds import ScheduleEventKind
from service.errors import NotFound
from service.pages.figures.style import Figure
from service.pages.figures.trend import Missed, Sweep, trend_figure
from service.pages.summary import trend
from service.schedules import queries
from service.schedules.schemas import ScheduleEventView, ScheduleView
from service.studies.schemas import ListedStudy

MOST_SWEEPS = 100
MOST_EVENTS = 200
_MISSED = (ScheduleEventKind.SKIPPED, ScheduleEventKind.MISSED, ScheduleEventKind.FAILED)


@dataclass(frozen=True, kw_only=True)
class Night:
    """A sweep with what is known of its data."""

    study: ListedStudy
    changed: Sequence[str]
    """What differs from the sweep before, by content: `data.train`, `data.eval`, `model`, `objective`."""
    known: bool
    """Whether the content of its data and model is known."""
    contest: ContestView | None = None
    """What it decided about the schedule's champion."""


@dataclass(frozen=True, kw_only=True)
class SchedulePage:
    """What the page of a schedule shows."""

    name: str
    schedule: ScheduleView | None
    """None: it was removed."""
    nights: Sequence[Night]
    """The latest first."""
    more: bool
    """Whether there are earlier ones."""
    champion: ReignView | None
    """The best adapter so far."""
    missed: Sequence[ScheduleEventView]
    """Firings that made no sweep, the latest first."""
    history: Sequence[ScheduleEventView]
    """What else happened to it, the latest first."""
    figure: Figure | None
    summary: Sequence[str]
    made_at: datetime

    @property
    def watched(self) -> list[str]:
        """Addresses whose answers change with what the page shows."""
        at = f"/v1/schedules/{self.name}"
        return [] if self.schedule is None else [at, f"{at}/studies?limit=20"]


def read_page(session: Session, ref: str) -> SchedulePage:
    """Everything that the page of a schedule shows, also after it was removed. Raises `NotFound`."""
    try:
        schedule = queries.show(session, [queries.get_schedule(session, ref)])[0]
    except NotFound:
        schedule = None
    page = queries.list_sweeps(session, ref, limit=MOST_SWEEPS, cursor=None)
    events = queries.list_history(session, ref, before=None, limit=MOST_EVENTS)
    listed = page.items
    prints = queries.fingerprints_of(session, [study.id for study in listed])
    contests, champion = _contests(session, ref)
    nights = list(_nights(listed, prints, contests))
    missed = [event for event in events if event.kind in _MISSED]
    name = ref if schedule is None else schedule.name
    return SchedulePage(
        name=name,
        schedule=schedule,
        nights=nights[::-1],
        more=page.next_cursor is not None,
        champion=champion,
        missed=missed,
        history=[event for event in events if event.kind not in _MISSED],
        figure=_figure(nights, missed),
        summary=list(_summary(nights, missed, more=page.next_cursor is not None)),
        made_at=database_now(session),
    )


def _contests(session: Session, ref: str) -> tuple[dict[str, ContestView], ReignView | None]:
    """Study id -> what it decided about the champion, and who reigns."""
    try:
        found = get_history(session, ref, before=None, limit=MOST_SWEEPS)
    except NotFound:
        return {}, None
    reigning = next((reign for reign in found.reigns if reign.until is None), None)
    return {contest.study_id: contest for contest in found.contests}, reigning


def _nights(
    listed: Sequence[ListedStudy],
    prints: Mapping[str, Mapping[str, str]],
    contests: Mapping[str, ContestView],
) -> Iterator[Night]:
    """The oldest first, each compared with the one before whose data is known."""
    before: Mapping[str, str] = {}
    metric: str | None = None
    for study in sorted(listed, key=lambda each: (each.fired_for or each.created_at, each.id)):
        known = prints.get(study.id, {})
        changed = changed_parts(before, known)
        if metric is not None and study.metric is not None and study.metric != metric:
            changed.append("objective")
        contest = contests.get(study.id)
        yield Night(study=study, changed=changed, known=bool(known), contest=contest)
        before, metric = {**before, **known}, study.metric or metric


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What two sweeps have both identified, and differently: `data.eval`, `data.train`, `model`."""
    return sorted(name for name in before.keys() & now.keys() if before[name] != now[name])


def _figure(nights: Sequence[Night], missed: Sequence[ScheduleEventView]) -> Figure | None:
    metrics = [night.study.metric for night in nights if night.study.metric is not None]
    if not metrics:
        return None
    sweeps = [
        Sweep(
            name=night.study.name,
            at=night.study.fired_for or night.study.created_at,
            state=night.study.state,
            value=None
            if night.study.best is None or night.study.metric != metrics[-1]
            else night.study.best.value,
            changed=night.changed,
        )
        for night in nights
    ]
    without = [Missed(at=event.fired_for or event.at, why=event.message) for event in missed]
    return trend_figure(sweeps, without, metrics[-1])


def _summary(nights: Sequence[Night], missed: Sequence[ScheduleEventView], *, more: bool) -> Iterator[str]:
    if not nights:
        yield "It has made no sweep yet."
    else:
        shown = counted(len(nights), "sweep")
        yield f"The latest {shown} are shown." if more else f"It has made {shown}."
    last = nights[-1].study.metric if nights else None
    comparable: list[tuple[str, float]] = []
    for night in nights:
        if night.changed:
            comparable = []
        if night.study.best is not None and night.study.metric == last:
            comparable.append((night.study.name, night.study.best.value))
    maximizes = bool(nights) and nights[-1].study.maximizes
    yield from trend(comparable, last or "value", maximizes=maximizes)
    breaks = sum(bool(night.changed) for night in nights)
    if breaks:
        times = counted(breaks, "time")
        yield f"Its data, model or objective changed {times}; values across a change do not compare."
    if missed:
        yield f"{counted(len(missed), 'firing')} made no sweep."
