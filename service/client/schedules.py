"""What the client asks of schedules and their champions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from service.champions.schemas import ChampionHistory, ChampionView
from service.client.paging import PAGE, Paged, given, segment
from service.schedules.schemas import (
    Firings,
    ListedSchedule,
    ScheduleEventView,
    ScheduleView,
    SweepRun,
)
from service.studies.schemas import StudyView


class ScheduleRequests(Paged):
    """Schedules: making, changing and running them, and their champions."""

    def schedules(
        self, *, prefix: str | None = None, owner: str | None = None, enabled: bool | None = None
    ) -> list[ListedSchedule]:
        """Schedules, by name: those that match every filter."""
        query = given(prefix=prefix, owner=owner, enabled=enabled)
        return self._items(ListedSchedule, self._json("GET", "/v1/schedules", query=query))

    def schedule(self, schedule: str) -> ScheduleView:
        return self._one(ScheduleView, "GET", f"/v1/schedules/{segment(schedule)}")

    def add_schedule(
        self,
        definition: Mapping[str, Any],
        *,
        cron: str,
        timezone: str = "UTC",
        name: str | None = None,
        enabled: bool = True,
        **options: str | bool,
    ) -> ScheduleView:
        """Adds a schedule. `options`: `overlap`, `catch_up`, `start`, `end`, `until`, `until_action`,
        `sweep_name`, `repeat_configurations`, `champion`."""
        body = {"cron": cron, "timezone": timezone, "enabled": enabled, "definition": definition, **options}
        return self._one(ScheduleView, "POST", "/v1/schedules", body | ({"name": name} if name else {}))

    def change_schedule(self, schedule: str, **changes: Any) -> ScheduleView:
        """Changes `enabled`, `cron`, `timezone`, `name`, `seed`, `definition` or one of the options of
        `add_schedule`; None takes `start`, `end`, `until` or `sweep_name` away."""
        return self._one(ScheduleView, "PATCH", f"/v1/schedules/{segment(schedule)}", changes)

    def remove_schedule(self, schedule: str) -> None:
        self._send("DELETE", f"/v1/schedules/{segment(schedule)}")

    def run_schedule(self, schedule: str) -> StudyView:
        """Makes a sweep now."""
        return self._one(StudyView, "POST", f"/v1/schedules/{segment(schedule)}/run")

    def sweeps(self, schedule: str) -> Iterator[SweepRun]:
        """The studies that a schedule has made, newest first, also after it was removed."""
        return self._pages(f"/v1/schedules/{segment(schedule)}/studies", {}, SweepRun)

    def next_firings(self, schedule: str, *, count: int) -> Firings:
        """When a schedule fires next."""
        path = f"/v1/schedules/{segment(schedule)}/firings"
        return self._read(Firings, self._json("GET", path, query={"count": str(count)}))

    def preview_firings(self, *, count: int, **times: str) -> Firings:
        """When a schedule would fire. `times`: `cron`, `timezone`, `start`, `end`."""
        query = {"count": str(count), **times}
        return self._read(Firings, self._json("GET", "/v1/schedule-preview", query=query))

    def schedule_history(self, schedule: str) -> Iterator[ScheduleEventView]:
        """What was changed of a schedule and which firings made no sweep, newest first."""
        path, query = f"/v1/schedules/{segment(schedule)}/history", {"limit": str(PAGE)}
        while True:
            page = self._items(ScheduleEventView, self._json("GET", path, query=query))
            yield from page
            if len(page) < PAGE:
                return
            query["before"] = str(page[-1].id)

    def champion(self, schedule: str) -> ChampionView:
        """The best adapter of a schedule so far."""
        return self._one(ChampionView, "GET", f"/v1/schedules/{segment(schedule)}/champion")

    def champion_history(self, schedule: str, *, limit: int = PAGE) -> ChampionHistory:
        """What its latest sweeps decided, and who reigned."""
        path = f"/v1/schedules/{segment(schedule)}/champion/history"
        return self._read(ChampionHistory, self._json("GET", path, query={"limit": str(limit)}))

    def promote_champion(self, schedule: str, study: str, trial: int) -> ChampionView:
        """Makes a trial's best adapter the champion."""
        body = {"study": study, "trial": trial}
        return self._one(ChampionView, "POST", f"/v1/schedules/{segment(schedule)}/champion", body)

    def roll_back_champion(self, schedule: str) -> ChampionView:
        """Brings back the champion before the present one."""
        return self._one(ChampionView, "POST", f"/v1/schedules/{segment(schedule)}/champion/rollback")

    def download_champion(self, schedule: str, target: BinaryIO) -> None:
        """Writes the zip of the champion's PEFT files to `target`."""
        self._download(f"/v1/schedules/{segment(schedule)}/champion/adapter", {}, target)
