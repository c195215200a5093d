"""The overview: what runs, what waits, what failed lately, schedules, and devices that were put aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.kinds import StudyKind
from service.devices.queries import show_workers
from service.devices.schemas import DeviceView, WorkerView
from service.range_tests import queries as range_tests
from service.range_tests.schemas import ListedRangeTest
from service.schedules import queries as schedules
from service.schedules.schemas import ListedSchedule
from service.states import StudyState
from service.studies import queries as studies
from service.studies.schemas import ListedStudy, StudyView
from service.wording.standing import ENDED_STATES, elapsed

MOST = 20
"""Studies of a kind, schedules, workers and devices that are shown."""
_WAITING = (StudyState.QUEUED, StudyState.PAUSED)
_ENDED = (StudyState.COMPLETED, StudyState.CANCELLED)
WATCHED = (
    "/v1/studies?limit=50",
    "/v1/studies?state=running&limit=20",
    "/v1/range-tests?limit=20",
    "/v1/schedules",
    "/v1/workers",
)
"""Addresses whose answers change with what the page shows."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running study is."""

    study: StudyView
    ended: int
    planned: int | None
    """Trials, repeats included once they have begun; None: not known."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Some:
    """The first of a list, and whether there are more."""

    items: Sequence[ListedStudy]
    more: bool


@dataclass(frozen=True, kw_only=True)
class Overview:
    now: datetime
    running: Sequence[Progress]
    more_running: bool
    waiting: Some
    failed: Some
    ended: Some
    range_tests: Sequence[ListedRangeTest]
    schedules: Sequence[ListedSchedule]
    more_schedules: int
    workers: Sequence[WorkerView]
    more_workers: int
    put_aside: Sequence[DeviceView]

    @property
    def empty(self) -> bool:
        """Whether there is no study at all."""
        return not (
            self.running or self.range_tests or self.waiting.items or self.failed.items or self.ended.items
        )


def read_overview(session: Session) -> Overview:
    """Everything that the overview shows."""
    now = database_now(session)
    active = studies.Filters(states=[StudyState.RUNNING])
    running = studies.list_studies(session, active, limit=MOST, cursor=None)
    tests = studies.Filters(kind=StudyKind.RANGE_TEST, states=[StudyState.RUNNING, *_WAITING])
    testing = studies.list_studies(session, tests, limit=MOST, cursor=None)
    fleet = show_workers(session)
    every = schedules.list_schedules(session)
    shown = sorted(every, key=lambda each: (each.next_fire_at is None, each.next_fire_at or now, each.name))
    return Overview(
        now=now,
        running=[
            _progress(studies.show(session, studies.get_study(session, study.id)), now)
            for study in running.studies
        ],
        more_running=running.next_cursor is not None,
        waiting=_some(session, _WAITING, MOST),
        failed=_some(session, (StudyState.FAILED,), MOST // 2),
        ended=_some(session, _ENDED, MOST // 2),
        range_tests=range_tests.list_view(session, testing.studies),
        schedules=schedules.list_view(session, shown[:MOST]),
        more_schedules=max(0, len(every) - MOST),
        workers=fleet.workers[:MOST],
        more_workers=max(0, len(fleet.workers) - MOST),
        put_aside=[device for device in fleet.devices if device.put_aside_at is not None][:MOST],
    )


def _some(session: Session, states: Sequence[StudyState], limit: int) -> Some:
    page = studies.list_studies(session, studies.Filters(states=states), limit=limit, cursor=None)
    return Some(items=studies.list_view(session, page.studies), more=page.next_cursor is not None)


def _progress(study: StudyView, now: datetime) -> Progress:
    ended = sum(getattr(study.counts, state) for state in ENDED_STATES)
    planned = study.trials_requested
    if planned is not None and study.counts.repeats:
        planned += study.repeats_requested
    return Progress(study=study, ended=ended, planned=planned, seconds=elapsed(study, now))
