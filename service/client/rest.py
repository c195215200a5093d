"""A typed client of the REST API: one method per thing the service does."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from service.access.audit.schemas import AuditView
from service.access.keys.schemas import KeyView, Me, NewKeyView
from service.access.sharing.schemas import AccessView
from service.champions.schemas import ChampionHistory, ChampionView
from service.client.connection import Connection
from service.client.errors import RefusedError, UnexpectedAnswerError
from service.control.schemas import RecipeView
from service.devices.schemas import DeviceView, Fleet
from service.events.schemas import EventView
from service.presets.schemas import SearchSpaceView
from service.range_tests.schemas import RangeTestView
from service.reports.schemas import ImportanceView, ReportView
from service.schedules.schemas import (
    Firings,
    ListedSchedule,
    ScheduleEventView,
    ScheduleView,
    SweepRun,
)
from service.studies.schemas import ListedStudy, StudyView
from service.trials.schemas import BestView, TrialLog, TrialView

Listed = TypeVar("Listed", bound=ListedStudy)

_PAGE = 100
_SLACK_SECONDS = 30.0
"""How much later than expected an answer or a heartbeat may come."""
_CHANGES = 5
"""Tries of a change of what others change, too."""
_PLAN_SECONDS = 600.0
"""A plan reads data on the server, which has a time limit of its own."""


class Arrival(NamedTuple):
    """What a stream of events has sent."""

    id: int
    """All events up to this id have arrived, or do not match."""
    event: EventView | None
    """None: none, but the server is there."""


class Client(Connection):
    """Talks to one server. Use as a context manager.

    Args:
        server: The server's address, for example `http://127.0.0.1:8787`.
        api_key: Sent as a bearer token when given.
        timeout: Seconds to wait for an answer.
        transport: Stands in for the network in unit tests.
        sleep: Stands in for waiting in unit tests.

    Raises:
        ValueError: `server` is not an http or https address.

    Every method raises `RefusedError`, `UnreachableError` or `UnexpectedAnswerError`. Every POST carries an
    `Idempotency-Key`; where its answer is lost on the way it is sent again with the same key, so that what it
    asks for is done once.

    A study or schedule is named by its id or its name.
    """

    # Studies

    def submit(self, definition: Mapping[str, Any], *, idempotency_key: str | None = None) -> StudyView:
        """Submits a study. With a key of its own, a script that was interrupted may submit it again."""
        return self._one(StudyView, "POST", "/v1/studies", definition, idempotency_key=idempotency_key)

    def plan(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """What a study would do, as the server sent it. Nothing is stored. It may take minutes."""
        return self._json("POST", "/v1/studies", definition, {"dry_run": "true"}, timeout=_PLAN_SECONDS)

    def studies(
        self,
        *,
        state: str | Sequence[str] | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        schedule: str | None = None,
        tag: Sequence[str] | None = None,
        archived: bool | None = None,
        deleted: bool | None = None,
        **times: str | None,
    ) -> Iterator[ListedStudy]:
        """Studies, newest first, fetched page by page as they are read: those that match every filter.

        Args:
            state: One state, or several of which any will do.
            prefix: What their names begin with.
            owner: Whose API key submitted them.
            schedule: The schedule that made them, by name or id.
            tag: Tags, all of which they have.
            archived: Those that are archived, in place of the others.
            deleted: Those that are to be removed, in place of the others.
            times: `created_after`, `created_before`, `ended_after`, `ended_before`, as RFC 3339.
        """
        filters = _given(state=state, prefix=prefix, owner=owner, schedule=schedule, tag=tag, **times)
        filters |= _given(archived=archived, deleted=deleted)
        yield from self._pages("/v1/studies", filters, ListedStudy)

    def _pages(
        self, path: str, filters: Mapping[str, str | list[str]], kind: type[Listed]
    ) -> Iterator[Listed]:
        query: dict[str, str | list[str]] = {"limit": str(_PAGE), **filters}
        while True:
            page = self._json("GET", path, query=query)
            yield from self._items(kind, page)
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = cursor

    def study(self, study: str, *, wait: float | None = None) -> StudyView:
        """A study as it is now; with `wait` when it has ended, or after so many seconds (at most 120)."""
        path = f"/v1/studies/{_segment(study)}"
        if wait is None:
            return self._one(StudyView, "GET", path)
        return self._one(StudyView, "GET", path, query={"wait": f"{wait:g}"}, timeout=wait + _SLACK_SECONDS)

    def trials(
        self,
        study: str,
        *,
        state: str | Sequence[str] | None = None,
        sort: Literal["number", "best"] = "number",
        limit: int | None = None,
    ) -> list[TrialView]:
        """A study's trials: those in a state, or in any of several; at most `limit` of them."""
        query = _given(state=state, sort=None if sort == "number" else sort, limit=limit)
        return self._items(TrialView, self._json("GET", f"/v1/studies/{_segment(study)}/trials", query=query))

    def trial(self, study: str, number: int) -> TrialView:
        return self._one(TrialView, "GET", f"/v1/studies/{_segment(study)}/trials/{number}")

    def trial_log(self, study: str, number: int) -> TrialLog:
        """What happened to a trial and what it measured, oldest first."""
        return self._one(TrialLog, "GET", f"/v1/studies/{_segment(study)}/trials/{number}/log")

    def best(self, study: str) -> BestView:
        return self._one(BestView, "GET", f"/v1/studies/{_segment(study)}/best")

    def report(self, study: str) -> ReportView:
        return self._one(ReportView, "GET", f"/v1/studies/{_segment(study)}/report")

    def save_report(self, study: str, target: BinaryIO) -> None:
        """Writes a study's report to `target`: a page that is one file."""
        self._download(f"/reports/studies/{_segment(study)}/file", {}, target)

    def save_schedule_report(self, schedule: str, target: BinaryIO) -> None:
        """Writes a schedule's report to `target`: a page that is one file."""
        self._download(f"/reports/schedules/{_segment(schedule)}/file", {}, target)

    def importance(self, study: str) -> ImportanceView:
        return self._one(ImportanceView, "GET", f"/v1/studies/{_segment(study)}/importance")

    def cancel(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/cancel")

    def pause(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/pause")

    def resume(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/resume")

    def extend(self, study: str, **more: int | float | str) -> StudyView:
        """Gives a study more `trials`, `timeout`, `max_gpu_hours` or `max_failed_trials`."""
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/extend", more)

    def archive(self, study: str) -> StudyView:
        """Has lists leave a study out."""
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/archive")

    def unarchive(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/unarchive")

    def delete(self, study: str) -> StudyView:
        """Has a study that has ended removed, once its time of grace is over."""
        return self._one(StudyView, "DELETE", f"/v1/studies/{_segment(study)}")

    def restore(self, study: str) -> StudyView:
        """Takes a deletion back."""
        return self._one(StudyView, "POST", f"/v1/studies/{_segment(study)}/restore")

    def label(self, study: str, *, tags: Sequence[str] | None = None, note: str | None = None) -> StudyView:
        """Gives a study these tags, this note, or both; an empty note removes the one it has."""
        given = {"tags": None if tags is None else list(tags), "note": note}
        body = {key: value for key, value in given.items() if value is not None}
        return self._one(StudyView, "PATCH", f"/v1/studies/{_segment(study)}", body)

    def change_tags(self, study: str, *, add: Collection[str], remove: Collection[str]) -> StudyView:
        """Adds tags to a study and removes others. If others change it meanwhile, it is read again."""
        path = f"/v1/studies/{_segment(study)}"
        for _ in range(_CHANGES):
            answer = self._send("GET", path)
            found = self._read(StudyView, answer.json())
            tags = sorted((set(found.tags) - set(remove)) | set(add))
            headers = {"If-Match": answer.headers.get("ETag", "*")}
            try:
                return self._read(StudyView, self._json("PATCH", path, {"tags": tags}, headers=headers))
            except RefusedError as error:
                if error.status != HTTPStatus.PRECONDITION_FAILED:
                    raise
        raise UnexpectedAnswerError(self.server, "the study is changed by others again and again; try again")

    def stop_trial(self, study: str, number: int, *, reason: str | None = None) -> TrialView:
        """Ends one trial early."""
        path = f"/v1/studies/{_segment(study)}/trials/{number}/stop"
        return self._one(TrialView, "POST", path, {} if reason is None else {"reason": reason})

    def enqueue(self, study: str, params: Mapping[str, Any]) -> RecipeView:
        """Has the next trial use these parameters; the sampler chooses those that are left out."""
        return self._one(
            RecipeView, "POST", f"/v1/studies/{_segment(study)}/trials", {"params": dict(params)}
        )

    def enqueued(self, study: str) -> list[RecipeView]:
        """The recipes that were enqueued, oldest first, and what became of each."""
        path, found = f"/v1/studies/{_segment(study)}/enqueued", list[RecipeView]()
        while page := self._items(
            RecipeView, self._json("GET", path, query={"after": str(found[-1].id if found else 0)})
        ):
            found += page
        return found

    def events(
        self, study: str | None = None, *, after: int = 0, **filters: str | Sequence[str] | None
    ) -> Iterator[EventView]:
        """Events with an id above `after`, oldest first, fetched page by page.

        Args:
            study: Whose; None: everybody's.
            after: The id of an event, or 0.
            filters: `kind`, one or several; where no study is named, `owner` and `schedule`, too.
        """
        query = _given(**filters)
        while True:
            query["after"] = str(after)
            page = self._items(EventView, self._json("GET", _events(study), query=query))
            yield from page
            if not page:
                return
            after = page[-1].id

    def arrivals(
        self,
        study: str | None = None,
        *,
        after: int | None = None,
        heartbeat: float = 15.0,
        **filters: str | Sequence[str] | None,
    ) -> Generator[list[Arrival], None, None]:
        """The server's stream of events: as they happen, those of each moment together.

        It ends when the server stops, and raises `UnreachableError` when the server is gone. Then ask again
        with the id of the last arrival as `after`: nothing is missed, and nothing comes twice.

        Args:
            study: Whose; None: everybody's.
            after: Only events with ids above this one; None: only what happens from now on.
            heartbeat: Seconds without an event after which there is an arrival without one.
            filters: As of `events`.
        """
        query = {**_given(**filters), "heartbeat": f"{heartbeat:g}"}
        silence = heartbeat + _SLACK_SECONDS
        for found in self._messages(f"{_events(study)}/stream", query, last_id=after, silence=silence):
            yield [
                Arrival(message.id, None if message.data is None else self._event(message.data))
                for message in found
                if message.id is not None
            ]

    def _event(self, data: bytes) -> EventView:
        return self._read(EventView, json.loads(data))

    def download_adapter(
        self, study: str, number: int, target: BinaryIO, *, which: Literal["best", "last"] = "best"
    ) -> None:
        """Writes the zip of the trial's PEFT files to `target`."""
        path = f"/v1/studies/{_segment(study)}/trials/{number}/adapter"
        self._download(path, {"which": which}, target)

    def dashboard_url(self, study: StudyView | None = None) -> str:
        """The study's page in Optuna dashboard; the list of studies while it has none."""
        return self.server + ((study and study.dashboard_path) or "/dashboard")

    # Range tests

    def submit_range_test(self, definition: Mapping[str, Any]) -> RangeTestView:
        """Sweeps the learning rate for a study, which itself is not submitted."""
        return self._one(RangeTestView, "POST", "/v1/range-tests", definition)

    def range_test(self, range_test: str) -> RangeTestView:
        return self._one(RangeTestView, "GET", f"/v1/range-tests/{_segment(range_test)}")

    def cancel_range_test(self, range_test: str) -> RangeTestView:
        return self._one(RangeTestView, "POST", f"/v1/range-tests/{_segment(range_test)}/cancel")

    # Schedules and presets

    def schedules(
        self, *, prefix: str | None = None, owner: str | None = None, enabled: bool | None = None
    ) -> list[ListedSchedule]:
        """Schedules, by name: those that match every filter."""
        query = _given(prefix=prefix, owner=owner, enabled=enabled)
        return self._items(ListedSchedule, self._json("GET", "/v1/schedules", query=query))

    def schedule(self, schedule: str) -> ScheduleView:
        return self._one(ScheduleView, "GET", f"/v1/schedules/{_segment(schedule)}")

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
        return self._one(ScheduleView, "PATCH", f"/v1/schedules/{_segment(schedule)}", changes)

    def remove_schedule(self, schedule: str) -> None:
        self._send("DELETE", f"/v1/schedules/{_segment(schedule)}")

    def run_schedule(self, schedule: str) -> StudyView:
        """Makes a sweep now."""
        return self._one(StudyView, "POST", f"/v1/schedules/{_segment(schedule)}/run")

    def sweeps(self, schedule: str) -> Iterator[SweepRun]:
        """The studies that a schedule has made, newest first, also after it was removed."""
        return self._pages(f"/v1/schedules/{_segment(schedule)}/studies", {}, SweepRun)

    def next_firings(self, schedule: str, *, count: int) -> Firings:
        """When a schedule fires next."""
        path = f"/v1/schedules/{_segment(schedule)}/firings"
        return self._read(Firings, self._json("GET", path, query={"count": str(count)}))

    def preview_firings(self, *, count: int, **times: str) -> Firings:
        """When a schedule would fire. `times`: `cron`, `timezone`, `start`, `end`."""
        query = {"count": str(count), **times}
        return self._read(Firings, self._json("GET", "/v1/schedule-preview", query=query))

    def schedule_history(self, schedule: str) -> Iterator[ScheduleEventView]:
        """What was changed of a schedule and which firings made no sweep, newest first."""
        path, query = f"/v1/schedules/{_segment(schedule)}/history", {"limit": str(_PAGE)}
        while True:
            page = self._items(ScheduleEventView, self._json("GET", path, query=query))
            yield from page
            if len(page) < _PAGE:
                return
            query["before"] = str(page[-1].id)

    def champion(self, schedule: str) -> ChampionView:
        """The best adapter of a schedule so far."""
        return self._one(ChampionView, "GET", f"/v1/schedules/{_segment(schedule)}/champion")

    def champion_history(self, schedule: str, *, limit: int = _PAGE) -> ChampionHistory:
        """What its latest sweeps decided, and who reigned."""
        path = f"/v1/schedules/{_segment(schedule)}/champion/history"
        return self._read(ChampionHistory, self._json("GET", path, query={"limit": str(limit)}))

    def promote_champion(self, schedule: str, study: str, trial: int) -> ChampionView:
        """Makes a trial's best adapter the champion."""
        body = {"study": study, "trial": trial}
        return self._one(ChampionView, "POST", f"/v1/schedules/{_segment(schedule)}/champion", body)

    def roll_back_champion(self, schedule: str) -> ChampionView:
        """Brings back the champion before the present one."""
        return self._one(ChampionView, "POST", f"/v1/schedules/{_segment(schedule)}/champion/rollback")

    def download_champion(self, schedule: str, target: BinaryIO) -> None:
        """Writes the zip of the champion's PEFT files to `target`."""
        self._download(f"/v1/schedules/{_segment(schedule)}/champion/adapter", {}, target)

    def presets(self) -> list[SearchSpaceView]:
        return self._items(SearchSpaceView, self._json("GET", "/v1/search-spaces"))

    def preset(self, name: str) -> SearchSpaceView:
        return self._one(SearchSpaceView, "GET", f"/v1/search-spaces/{_segment(name)}")

    # Workers

    def workers(self) -> Fleet:
        """The workers that have trials, and the GPUs that were put aside."""
        return self._one(Fleet, "GET", "/v1/workers")

    def restore_device(self, device: str) -> DeviceView:
        """Gives a GPU that was put aside back to the workers."""
        return self._one(DeviceView, "POST", f"/v1/workers/devices/{_segment(device)}/restore")

    # Access

    def me(self) -> Me:
        """Who the server takes this client for."""
        return self._one(Me, "GET", "/v1/me")

    def keys(self) -> list[KeyView]:
        return self._items(KeyView, self._json("GET", "/v1/keys"))

    def key_id(self, ref: str) -> str:
        """The id of a key by its id, or by its owner's name if they have one working key only.

        Raises:
            RefusedError: there is no such key, or there are several.
        """
        known = self.keys()
        if any(key.id == ref for key in known):
            return ref
        working = [key.id for key in known if key.owner == ref and key.state == "active"]
        if len(working) != 1:
            what = "several keys: " + ", ".join(working) if working else "no working key"
            raise RefusedError(
                404, "Not found", f"{ref!r} is not the id of a key, and as an owner has {what}."
            )
        return working[0]

    def add_key(self, wanted: Mapping[str, Any]) -> NewKeyView:
        """Makes a key: `owner`, `role`, `label`, `expires_in`. Its answer alone has the key itself."""
        return self._one(NewKeyView, "POST", "/v1/keys", wanted)

    def change_key(self, key: str, changes: Mapping[str, Any]) -> KeyView:
        """Changes `role` or `label`."""
        return self._one(KeyView, "PATCH", f"/v1/keys/{_segment(key)}", changes)

    def rotate_key(self, key: str, wanted: Mapping[str, Any]) -> NewKeyView:
        """Makes a key in place of another, which works on for `overlap`."""
        return self._one(NewKeyView, "POST", f"/v1/keys/{_segment(key)}/rotate", wanted)

    def revoke_key(self, key: str) -> None:
        self._send("DELETE", f"/v1/keys/{_segment(key)}")

    def share(self, name: str, shared: str | Sequence[str], *, schedule: bool = False) -> AccessView:
        """Says who may change a study or a schedule beside its owner: `none`, `team`, or these owners."""
        noun = "schedules" if schedule else "studies"
        return self._one(AccessView, "PUT", f"/v1/{noun}/{_segment(name)}/access", {"shared": shared})

    def audit(self, **filters: str | None) -> Iterator[AuditView]:
        """Entries of the audit log, newest first: `owner`, `object`, `since`, `until`."""
        query: dict[str, str | list[str]] = {"limit": "1000", **_given(**filters)}
        while True:
            page = self._json("GET", "/v1/audit", query=query)
            yield from self._items(AuditView, page)
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = str(cursor)


def _given(**filters: str | int | Sequence[str] | None) -> dict[str, str | list[str]]:
    """The query of the filters that are given."""
    query: dict[str, str | list[str]] = {}
    for name, value in filters.items():
        if isinstance(value, bool | int):
            query[name] = str(value).lower()
        elif value is not None:
            query[name] = value if isinstance(value, str) else list(value)
    return query


def _events(study: str | None) -> str:
    return "/v1/events" if study is None else f"/v1/studies/{_segment(study)}/events"


def _segment(name: str | int) -> str:
    return quote(str(name), safe="")
