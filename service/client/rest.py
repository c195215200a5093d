"""A typed client of the REST API: one method per thing the service does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from service.client.answers import Answer, NamedSpace, Problem, RangeTest, Schedule, Study, StudyEvent, Trial
from service.client.errors import RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.reports import Best, Importance, Report

DEFAULT_SERVER = "http://127.0.0.1:8787"

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PAGE = 100
_PLAN_SECONDS = 600.0
"""A plan reads data on the server, which has a time limit of its own."""
A = TypeVar("A", bound=Answer)


class Client:
    """Talks to one server. Use as a context manager.

    Args:
        server: The server's address, for example `http://127.0.0.1:8787`.
        api_key: Sent as a bearer token when given.
        timeout: Seconds to wait for an answer.
        transport: Stands in for the network in unit tests.

    Raises:
        ValueError: `server` is not an http or https address.

    Every method raises `RefusedError`, `UnreachableError` or `UnexpectedAnswerError`.
    A study or schedule is named by its id or its name.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        try:
            url = httpx.URL(self.server)
        except httpx.InvalidURL as error:
            raise ValueError(f"{server!r} is not a server address ({error})") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{server!r} is not a server address; one looks like {DEFAULT_SERVER}")
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

    def submit(self, definition: Mapping[str, Any]) -> Study:
        return self._one(Study, "POST", "/v1/studies", definition)

    def plan(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """What a study would do, as the server sent it. Nothing is stored. It may take minutes."""
        return self._json("POST", "/v1/studies", definition, {"dry_run": "true"}, timeout=_PLAN_SECONDS)

    def studies(self, *, state: str | None = None) -> Iterator[Study]:
        """All studies, newest first, fetched page by page as they are read."""
        query: dict[str, str] = {"limit": str(_PAGE)} | ({"state": state} if state else {})
        while True:
            page = self._json("GET", "/v1/studies", query=query)
            yield from self._items(Study, page)
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = cursor

    def study(self, study: str) -> Study:
        return self._one(Study, "GET", f"/v1/studies/{_segment(study)}")

    def trials(self, study: str) -> list[Trial]:
        return self._items(Trial, self._json("GET", f"/v1/studies/{_segment(study)}/trials"))

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

    def schedules(self) -> list[Schedule]:
        return self._items(Schedule, self._json("GET", "/v1/schedules"))

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
    ) -> Schedule:
        body = {"cron": cron, "timezone": timezone, "enabled": enabled, "definition": definition}
        return self._one(Schedule, "POST", "/v1/schedules", body | ({"name": name} if name else {}))

    def change_schedule(self, schedule: str, **changes: str | bool) -> Schedule:
        """Changes `enabled`, `cron` or `timezone`."""
        return self._one(Schedule, "PATCH", f"/v1/schedules/{_segment(schedule)}", changes)

    def remove_schedule(self, schedule: str) -> None:
        self._send("DELETE", f"/v1/schedules/{_segment(schedule)}")

    def search_spaces(self) -> list[NamedSpace]:
        return self._items(NamedSpace, self._json("GET", "/v1/search-spaces"))

    def search_space(self, name: str) -> NamedSpace:
        return self._one(NamedSpace, "GET", f"/v1/search-spaces/{_segment(name)}")

    # The wire

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        # httpx refuses to write NaN and infinity; the service reads them and names the key that holds one.
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(
                method,
                path,
                content=content,
                headers=headers,
                params=query,
                timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else httpx.Timeout(timeout, connect=5.0),
            )
        except httpx.RequestError as error:
            raise UnreachableError(self.server, _cause(error)) from error
        self._check(response)
        return response

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
            problem = Problem(title=response.reason_phrase or "No", detail="the answer gives no reason")
        raise RefusedError(response.status_code, problem)

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        response = self._send(method, path, body, query, timeout)
        try:
            document = response.json()
        except ValueError as error:
            raise UnexpectedAnswerError(self.server, "the answer is not JSON") from error
        if not isinstance(document, dict):
            raise UnexpectedAnswerError(self.server, "the answer is not a JSON object")
        return document

    def _one(self, kind: type[A], method: str, path: str, body: Mapping[str, Any] | None = None) -> A:
        return self._read(kind, self._json(method, path, body))

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


def _segment(name: str | int) -> str:
    return quote(str(name), safe="")


def _cause(error: httpx.RequestError) -> str:
    return "it took too long" if isinstance(error, httpx.TimeoutException) else str(error) or "it hung up"
