"""What the client asks of studies, their trials and their events."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, BinaryIO, Literal, NamedTuple

from service.client.errors import RefusedError, UnexpectedAnswerError
from service.client.paging import Paged, given, segment
from service.control.schemas import RecipeView
from service.events.schemas import EventView
from service.reports.schemas import ImportanceView, ReportView
from service.studies.schemas import ListedStudy, StudyView
from service.trials.schemas import BestView, TrialLog, TrialView

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


class StudyRequests(Paged):
    """Studies: submitting, reading, changing and following them."""

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
        filters = given(state=state, prefix=prefix, owner=owner, schedule=schedule, tag=tag, **times)
        filters |= given(archived=archived, deleted=deleted)
        yield from self._pages("/v1/studies", filters, ListedStudy)

    def study(self, study: str, *, wait: float | None = None) -> StudyView:
        """A study as it is now; with `wait` when it has ended, or after so many seconds (at most 120)."""
        path = f"/v1/studies/{segment(study)}"
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
        query = given(state=state, sort=None if sort == "number" else sort, limit=limit)
        return self._items(TrialView, self._json("GET", f"/v1/studies/{segment(study)}/trials", query=query))

    def trial(self, study: str, number: int) -> TrialView:
        return self._one(TrialView, "GET", f"/v1/studies/{segment(study)}/trials/{number}")

    def trial_log(self, study: str, number: int) -> TrialLog:
        """What happened to a trial and what it measured, oldest first."""
        return self._one(TrialLog, "GET", f"/v1/studies/{segment(study)}/trials/{number}/log")

    def best(self, study: str) -> BestView:
        return self._one(BestView, "GET", f"/v1/studies/{segment(study)}/best")

    def report(self, study: str) -> ReportView:
        return self._one(ReportView, "GET", f"/v1/studies/{segment(study)}/report")

    def save_report(self, study: str, target: BinaryIO) -> None:
        """Writes a study's report to `target`: a page that is one file."""
        self._download(f"/reports/studies/{segment(study)}/file", {}, target)

    def save_schedule_report(self, schedule: str, target: BinaryIO) -> None:
        """Writes a schedule's report to `target`: a page that is one file."""
        self._download(f"/reports/schedules/{segment(schedule)}/file", {}, target)

    def importance(self, study: str) -> ImportanceView:
        return self._one(ImportanceView, "GET", f"/v1/studies/{segment(study)}/importance")

    def cancel(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/cancel")

    def pause(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/pause")

    def resume(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/resume")

    def extend(self, study: str, **more: int | float | str) -> StudyView:
        """Gives a study more `trials`, `timeout`, `max_gpu_hours` or `max_failed_trials`."""
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/extend", more)

    def archive(self, study: str) -> StudyView:
        """Has lists leave a study out."""
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/archive")

    def unarchive(self, study: str) -> StudyView:
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/unarchive")

    def delete(self, study: str) -> StudyView:
        """Has a study that has ended removed, once its time of grace is over."""
        return self._one(StudyView, "DELETE", f"/v1/studies/{segment(study)}")

    def restore(self, study: str) -> StudyView:
        """Takes a deletion back."""
        return self._one(StudyView, "POST", f"/v1/studies/{segment(study)}/restore")

    def label(self, study: str, *, tags: Sequence[str] | None = None, note: str | None = None) -> StudyView:
        """Gives a study these tags, this note, or both; an empty note removes the one it has."""
        given = {"tags": None if tags is None else list(tags), "note": note}
        body = {key: value for key, value in given.items() if value is not None}
        return self._one(StudyView, "PATCH", f"/v1/studies/{segment(study)}", body)

    def change_tags(self, study: str, *, add: Collection[str], remove: Collection[str]) -> StudyView:
        """Adds tags to a study and removes others. If others change it meanwhile, it is read again."""
        path = f"/v1/studies/{segment(study)}"
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
        path = f"/v1/studies/{segment(study)}/trials/{number}/stop"
        return self._one(TrialView, "POST", path, {} if reason is None else {"reason": reason})

    def enqueue(self, study: str, params: Mapping[str, Any]) -> RecipeView:
        """Has the next trial use these parameters; the sampler chooses those that are left out."""
        return self._one(RecipeView, "POST", f"/v1/studies/{segment(study)}/trials", {"params": dict(params)})

    def enqueued(self, study: str) -> list[RecipeView]:
        """The recipes that were enqueued, oldest first, and what became of each."""
        path, found = f"/v1/studies/{segment(study)}/enqueued", list[RecipeView]()
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
        query = given(**filters)
        while True:
            query["after"] = str(after)
            page = self._items(EventView, self._json("GET", events_of(study), query=query))
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
        query = {**given(**filters), "heartbeat": f"{heartbeat:g}"}
        silence = heartbeat + _SLACK_SECONDS
        for found in self._messages(f"{events_of(study)}/stream", query, last_id=after, silence=silence):
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
        path = f"/v1/studies/{segment(study)}/trials/{number}/adapter"
        self._download(path, {"which": which}, target)

    def report_url(self, study: StudyView) -> str:
        """The study's page, which keeps itself up to date."""
        return f"{self.server}/reports/studies/{segment(study.name)}"

    def dashboard_url(self, study: StudyView | None = None) -> str:
        """The study's page in Optuna dashboard; the list of studies while it has none."""
        return self.server + ((study and study.dashboard_path) or "/dashboard")


def events_of(study: str | None) -> str:
    return "/v1/events" if study is None else f"/v1/studies/{segment(study)}/events"
