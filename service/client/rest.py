"""A typed client of the REST API: one method per thing the service does."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from service.client.answers import (
    Answer,
    ListedSchedule,
    ListedStudy,
    NamedSpace,
    Problem,
    RangeTest,
    Schedule,
    ScheduleEvent,
    Study,
    StudyEvent,
    Trial,
)
from service.client.errors import RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.fleet import Device, Fleet
from service.client.reports import Best, Importance, Report

DEFAULT_SERVER = "http://127.0.0.1:8787"

IDEMPOTENCY_KEY = "Idempotency-Key"
AWAY = frozenset({502, 503, 504})
"""What a proxy, or a server that is starting or stopping or has lost its database, answers."""

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries of a change whose answer was lost: longer than a server takes to start again."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PAGE = 100
_PLAN_SECONDS = 600.0
"""A plan reads data on the server, which has a time limit of its own."""
_CHECK_SECONDS = 120.0
"""A definition's data and model are looked at before it is accepted, likewise."""
A = TypeVar("A", bound=Answer)


class Client:
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

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server.rstrip("/")
        try:
            url = httpx.URL(self.server)
        except httpx.InvalidURL as error:
            raise ValueError(f"{server!r} is not a server address ({error})") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{server!r} is not a server address; one looks like {DEFAULT_SERVER}")
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.server,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=5.0),
            transport=transport,
            # A proxy set for the outside world cannot reach this machine's own ports.
            trust_env=url.host not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # Studies

    def submit(self, definition: Mapping[str, Any], *, idempotency_key: str | None = None) -> Study:
        """Submits a study. With a key of its own, a script that was interrupted may submit it again."""
        headers = _keyed(idempotency_key)
        answer = self._json("POST", "/v1/studies", definition, headers=headers, timeout=_CHECK_SECONDS)
        return self._read(Study, answer)

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
    ) -> Iterator[ListedStudy]:
        """Studies, newest first, fetched page by page as they are read: those that match every filter.

        Args:
            state: One state, or several of which any will do.
            prefix: What their names begin with.
            owner: Whose API key submitted them.
            schedule: The schedule that made them, by name or id.
        """
        filters = _given(state=state, prefix=prefix, owner=owner, schedule=schedule)
        yield from self._pages("/v1/studies", filters)

    def _pages(self, path: str, filters: Mapping[str, str | list[str]]) -> Iterator[ListedStudy]:
        query: dict[str, str | list[str]] = {"limit": str(_PAGE), **filters}
        while True:
            page = self._json("GET", path, query=query)
            yield from self._items(ListedStudy, page)
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = cursor

    def study(self, study: str) -> Study:
        return self._one(Study, "GET", f"/v1/studies/{_segment(study)}")

    def trials(
        self,
        study: str,
        *,
        state: str | Sequence[str] | None = None,
        sort: Literal["number", "best"] = "number",
        limit: int | None = None,
    ) -> list[Trial]:
        """A study's trials: those in a state, or in any of several; at most `limit` of them."""
        query = _given(state=state, sort=None if sort == "number" else sort, limit=limit)
        return self._items(Trial, self._json("GET", f"/v1/studies/{_segment(study)}/trials", query=query))

    def trial(self, study: str, number: int) -> Trial:
        return self._one(Trial, "GET", f"/v1/studies/{_segment(study)}/trials/{number}")

    def best(self, study: str) -> Best:
        return self._one(Best, "GET", f"/v1/studies/{_segment(study)}/best")

    def report(self, study: str) -> Report:
        return self._one(Report, "GET", f"/v1/studies/{_segment(study)}/report")

    def importance(self, study: str) -> Importance:
        return self._one(Importance, "GET", f"/v1/studies/{_segment(study)}/importance")

    def cancel(self, study: str) -> Study:
        return self._one(Study, "POST", f"/v1/studies/{_segment(study)}/cancel")

    def pause(self, study: str) -> Study:
        return self._one(Study, "POST", f"/v1/studies/{_segment(study)}/pause")

    def resume(self, study: str) -> Study:
        return self._one(Study, "POST", f"/v1/studies/{_segment(study)}/resume")

    def events(self, study: str, *, after: int = 0) -> Iterator[StudyEvent]:
        """The study's events with an id above `after`, oldest first, fetched page by page."""
        path = f"/v1/studies/{_segment(study)}/events"
        while True:
            page = self._items(StudyEvent, self._json("GET", path, query={"after": str(after)}))
            yield from page
            if not page:
                return
            after = page[-1].id

    def download_adapter(
        self, study: str, number: int, target: BinaryIO, *, which: Literal["best", "last"] = "best"
    ) -> None:
        """Writes the zip of the trial's PEFT files to `target`."""
        path = f"/v1/studies/{_segment(study)}/trials/{number}/adapter"
        try:
            with self._http.stream("GET", path, params={"which": which}) as response:
                if not response.is_success:
                    response.read()
                    self._check(response)
                for chunk in response.iter_bytes():
                    target.write(chunk)
        except httpx.RequestError as error:
            raise UnreachableError(self.server, _cause(error)) from error

    def dashboard_url(self, study: Study | None = None) -> str:
        """The study's page in Optuna dashboard; the list of studies while it has none."""
        return self.server + ((study and study.dashboard_path) or "/dashboard")

    # Range tests

    def submit_range_test(self, definition: Mapping[str, Any]) -> RangeTest:
        """Sweeps the learning rate for a study, which itself is not submitted."""
        return self._one(RangeTest, "POST", "/v1/range-tests", definition)

    def range_test(self, range_test: str) -> RangeTest:
        return self._one(RangeTest, "GET", f"/v1/range-tests/{_segment(range_test)}")

    def cancel_range_test(self, range_test: str) -> RangeTest:
        return self._one(RangeTest, "POST", f"/v1/range-tests/{_segment(range_test)}/cancel")

    # Schedules and search spaces

    def schedules(
        self, *, prefix: str | None = None, owner: str | None = None, enabled: bool | None = None
    ) -> list[ListedSchedule]:
        """Schedules, by name: those that match every filter."""
        query = _given(prefix=prefix, owner=owner, enabled=enabled)
        return self._items(ListedSchedule, self._json("GET", "/v1/schedules", query=query))

    def schedule(self, schedule: str) -> Schedule:
        return self._one(Schedule, "GET", f"/v1/schedules/{_segment(schedule)}")

    def add_schedule(
        self,
        definition: Mapping[str, Any],
        *,
        cron: str,
        timezone: str = "UTC",
        name: str | None = None,
        enabled: bool = True,
        **options: str | bool,
    ) -> Schedule:
        """Adds a schedule. `options`: `overlap`, `repeat_configurations`."""
        body = {"cron": cron, "timezone": timezone, "enabled": enabled, "definition": definition, **options}
        return self._one(Schedule, "POST", "/v1/schedules", body | ({"name": name} if name else {}))

    def change_schedule(self, schedule: str, **changes: Any) -> Schedule:
        """Changes `enabled`, `cron`, `timezone`, `name`, `seed`, `overlap`, `repeat_configurations` or
        `definition`."""
        return self._one(Schedule, "PATCH", f"/v1/schedules/{_segment(schedule)}", changes)

    def remove_schedule(self, schedule: str) -> None:
        self._send("DELETE", f"/v1/schedules/{_segment(schedule)}")

    def run_schedule(self, schedule: str) -> Study:
        """Makes a sweep now."""
        return self._one(Study, "POST", f"/v1/schedules/{_segment(schedule)}/run")

    def sweeps(self, schedule: str) -> Iterator[ListedStudy]:
        """The studies that a schedule has made, newest first, also after it was removed."""
        return self._pages(f"/v1/schedules/{_segment(schedule)}/studies", {})

    def schedule_history(self, schedule: str) -> Iterator[ScheduleEvent]:
        """What was changed of a schedule and which firings made no sweep, newest first."""
        path, query = f"/v1/schedules/{_segment(schedule)}/history", {"limit": str(_PAGE)}
        while True:
            page = self._items(ScheduleEvent, self._json("GET", path, query=query))
            yield from page
            if len(page) < _PAGE:
                return
            query["before"] = str(page[-1].id)

    def search_spaces(self) -> list[NamedSpace]:
        return self._items(NamedSpace, self._json("GET", "/v1/search-spaces"))

    def search_space(self, name: str) -> NamedSpace:
        return self._one(NamedSpace, "GET", f"/v1/search-spaces/{_segment(name)}")

    # Workers

    def fleet(self) -> Fleet:
        """The workers that have trials, and the GPUs that were put aside."""
        return self._one(Fleet, "GET", "/v1/workers")

    def restore_device(self, device: str) -> Device:
        """Gives a GPU that was put aside back to the workers."""
        return self._one(Device, "POST", f"/v1/workers/devices/{_segment(device)}/restore")

    # The wire

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | list[str]] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        # httpx refuses to write NaN and infinity; the service reads them and names the key that holds one.
        content = None if body is None else json.dumps(body).encode()
        request = self._http.build_request(
            method,
            path,
            content=content,
            headers={**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})},
            params=query,
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else httpx.Timeout(timeout, connect=5.0),
        )
        pauses = iter(_PAUSES if IDEMPOTENCY_KEY in request.headers else ())
        sent = False
        while True:
            try:
                response = self._http.send(request)
            except httpx.RequestError as error:
                # Nobody there is no lost answer, unless somebody was there a moment ago.
                sent = sent or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                pause = next(pauses, None) if sent else None
                if pause is None:
                    raise UnreachableError(self.server, _cause(error)) from error
            else:
                sent = True
                pause = next(pauses, None) if response.status_code in AWAY else None
                if pause is None:
                    self._check(response)
                    return response
            self._sleep(pause)

    def _check(self, response: httpx.Response) -> None:
        """Raises unless the answer is a success."""
        if response.is_success:
            return
        if response.is_redirect:
            where = response.headers.get("Location", "elsewhere")
            raise UnexpectedAnswerError(self.server, f"it redirects to {where}")
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            # A proxy's page, for example. Its text is HTML more often than not: the status says more.
            reason = f"The answer gives no reason. Is {self.server} a Nightsweep server?"
            problem = Problem(title=response.reason_phrase or "No", detail=reason)
        raise RefusedError(response.status_code, problem)

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | list[str]] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        response = self._send(method, path, body, query, timeout, headers)
        try:
            document = response.json()
        except ValueError as error:
            raise UnexpectedAnswerError(self.server, "the answer is not JSON") from error
        if not isinstance(document, dict):
            raise UnexpectedAnswerError(self.server, "the answer is not a JSON object")
        return document

    def _one(self, kind: type[A], method: str, path: str, body: Mapping[str, Any] | None = None) -> A:
        headers = _keyed() if method == "POST" else None
        timeout = None if body is None else _CHECK_SECONDS
        return self._read(kind, self._json(method, path, body, headers=headers, timeout=timeout))

    def _items(self, kind: type[A], page: Mapping[str, Any]) -> list[A]:
        if not isinstance(page.get("items"), list):
            raise UnexpectedAnswerError(self.server, "the answer has no list of items")
        return [self._read(kind, item) for item in page["items"]]

    def _read(self, kind: type[A], document: Any) -> A:
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{kind.__name__}.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
            raise UnexpectedAnswerError(
                self.server, f"{what}; do client and server have one version?"
            ) from error


def _given(**filters: str | int | Sequence[str] | None) -> dict[str, str | list[str]]:
    """The query of the filters that are given."""
    query: dict[str, str | list[str]] = {}
    for name, value in filters.items():
        if isinstance(value, bool | int):
            query[name] = str(value).lower()
        elif value is not None:
            query[name] = value if isinstance(value, str) else list(value)
    return query


def _keyed(key: str | None = None) -> dict[str, str]:
    return {IDEMPOTENCY_KEY: key or str(uuid.uuid4())}


def _segment(name: str | int) -> str:
    return quote(str(name), safe="")


def _cause(error: httpx.RequestError) -> str:
    return "it took too long" if isinstance(error, httpx.TimeoutException) else str(error) or "it hung up"
