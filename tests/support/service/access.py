"""Callers of every kind, and the written table of what each route answers them.

The table is compared with the routes of the application and written out as `docs/reference/access.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.testclient import TestClient

CALLERS = ("nobody", "expired", "revoked", "viewer", "owner", "other submitter", "admin")
"""`owner` has a submitter's key and the study, range test or schedule that the request is about."""

Outcomes = tuple[int, int, int, int]
"""What a viewer, the owner, another submitter and an admin are answered; all others are answered 401, or on
open routes what everybody is."""

READ: Outcomes = (200, 200, 200, 200)
SUBMIT: Outcomes = (403, 201, 201, 201)
CHANGE: Outcomes = (403, 202, 403, 202)
SET: Outcomes = (403, 200, 403, 200)
MAKE: Outcomes = (403, 201, 403, 201)
REMOVE: Outcomes = (403, 204, 403, 204)


@dataclass(frozen=True)
class Row:
    """One route, and what it answers.

    Attributes:
        outcomes: see `Outcomes`.
        body: of a right request.
        open: the answer to everybody, with or without a key.
    """

    outcomes: Outcomes
    body: Callable[[dict[str, Any]], Any] | None = None
    open: int | None = None

    def expected(self, caller: str) -> int:
        if self.open is not None:
            return self.open
        known = dict(zip(CALLERS[3:], self.outcomes, strict=True))
        return known.get(caller, 401)


def _definition(made: dict[str, Any]) -> Any:
    return made["definition"]


def _schedule(made: dict[str, Any]) -> Any:
    return {"name": made["definition"]["name"], "cron": "0 2 * * *", "definition": made["definition"]}


def _only_admin(success: int) -> Outcomes:
    return (403, 403, 403, success)


TABLE: dict[str, Row] = {
    "GET /healthz": Row(READ, open=200),
    "GET /readyz": Row(READ, open=503),  # there is no coordinator in the test
    "GET /metrics": Row(READ),
    "GET /v1/me": Row(READ),
    "GET /v1/keys": Row(_only_admin(200)),
    "POST /v1/keys": Row(_only_admin(201), lambda _: {"owner": "carol"}),
    "GET /v1/keys/{key}": Row(_only_admin(200)),
    "PATCH /v1/keys/{key}": Row(_only_admin(200), lambda _: {"label": "night"}),
    "POST /v1/keys/{key}/rotate": Row(_only_admin(201), lambda _: {}),
    "DELETE /v1/keys/{key}": Row(_only_admin(204)),
    "GET /v1/audit": Row(_only_admin(200)),
    "GET /v1/studies": Row(READ),
    "POST /v1/studies": Row(SUBMIT, _definition),
    "GET /v1/studies/{study}": Row(READ),
    "PATCH /v1/studies/{study}": Row(SET, lambda _: {"note": "keep"}),
    "DELETE /v1/studies/{study}": Row(CHANGE),
    "POST /v1/studies/{study}/restore": Row(CHANGE),
    "POST /v1/studies/{study}/archive": Row(CHANGE),
    "POST /v1/studies/{study}/unarchive": Row(CHANGE),
    "POST /v1/studies/{study}/extend": Row(CHANGE, lambda _: {"trials": 1}),
    "POST /v1/studies/{study}/cancel": Row(CHANGE),
    "POST /v1/studies/{study}/pause": Row(CHANGE),
    "POST /v1/studies/{study}/resume": Row(CHANGE),
    "GET /v1/studies/{study}/access": Row(READ),
    "PUT /v1/studies/{study}/access": Row(SET, lambda _: {"shared": "none"}),
    "GET /v1/studies/{study}/events": Row(READ),
    "GET /v1/studies/{study}/events/stream": Row(READ),
    "GET /v1/events": Row(READ),
    "GET /v1/events/stream": Row(READ),
    "GET /v1/studies/{study}/enqueued": Row(READ),
    "GET /v1/studies/{study}/trials": Row(READ),
    "POST /v1/studies/{study}/trials": Row(CHANGE, lambda _: {"params": {"batch_size": 4}}),
    "POST /v1/studies/{study}/trials/{number}/stop": Row((403, 404, 403, 404)),  # nothing has run
    "GET /v1/studies/{study}/trials/{number}/log": Row((404, 404, 404, 404)),
    "GET /v1/studies/{study}/trials/{number}": Row((404, 404, 404, 404)),
    "GET /v1/studies/{study}/trials/{number}/adapter": Row((404, 404, 404, 404)),
    "GET /v1/studies/{study}/attempts": Row(READ),
    "GET /v1/studies/{study}/best": Row((404, 404, 404, 404)),
    "GET /v1/studies/{study}/report": Row(READ),
    "GET /v1/studies/{study}/importance": Row(READ),
    "GET /v1/studies/{study}/pareto-front": Row(READ),
    "GET /v1/range-tests": Row(READ),
    "POST /v1/range-tests": Row(SUBMIT, _definition),
    "GET /v1/range-tests/{range_test}": Row(READ),
    "POST /v1/range-tests/{range_test}/cancel": Row(CHANGE),
    "GET /v1/schedules": Row(READ),
    "POST /v1/schedules": Row(SUBMIT, _schedule),
    "GET /v1/schedules/{schedule}": Row(READ),
    "PATCH /v1/schedules/{schedule}": Row(SET, lambda _: {"enabled": False}),
    "DELETE /v1/schedules/{schedule}": Row(REMOVE),
    "POST /v1/schedules/{schedule}/run": Row(MAKE),
    "GET /v1/schedules/{schedule}/access": Row(READ),
    "PUT /v1/schedules/{schedule}/access": Row(SET, lambda _: {"shared": "none"}),
    "GET /v1/schedules/{schedule}/studies": Row(READ),
    "GET /v1/schedules/{schedule}/history": Row(READ),
    "GET /v1/schedules/{schedule}/firings": Row(READ),
    "GET /v1/schedule-preview": Row((422, 422, 422, 422)),  # no cron expression is given
    "GET /v1/schedules/{schedule}/champion": Row((404, 404, 404, 404)),
    "GET /v1/schedules/{schedule}/champion/history": Row(READ),
    "GET /v1/schedules/{schedule}/champion/adapter": Row((404, 404, 404, 404)),
    "POST /v1/schedules/{schedule}/champion": Row(
        (403, 404, 403, 404), lambda _: {"study": "none", "trial": 0}
    ),
    "POST /v1/schedules/{schedule}/champion/rollback": Row((403, 404, 403, 404)),
    "GET /v1/search-spaces": Row(READ),
    "GET /v1/search-spaces/{name}": Row(READ),
    "GET /v1/workers": Row(READ),
    "POST /v1/workers/devices/{device}/restore": Row(_only_admin(200)),
}


def written_out() -> str:
    """The table as Markdown."""
    head = "| route | " + " | ".join(CALLERS) + " |\n| --- " * 1 + "| --- " * len(CALLERS) + "|\n"
    rows = [
        f"| `{route}` | " + " | ".join(_word(row.expected(caller)) for caller in CALLERS) + " |\n"
        for route, row in TABLE.items()
    ]
    return head + "".join(rows)


def _word(status: int) -> str:
    """404 and 503 are answers of somebody who was let in."""
    return {401: "401", 403: "403"}.get(status, "yes")


class Browser:
    """Somebody at an address with a browser of their own, on an application that runs."""

    def __init__(self, app: Any, address: str, base_url: str) -> None:
        # Not entered: the application has been started by another client.
        self.http = TestClient(app, base_url=base_url, client=(address, 50000), follow_redirects=False)

    def form_token(self, path: str = "/login") -> str:
        """What the form of a page has."""
        return self.http.get(path).text.split('name="csrf_token" value="')[1].split('"')[0]

    def log_in(self, key: str, next_path: str = "") -> httpx.Response:
        """Fill in the login page."""
        form = {"key": key, "csrf_token": self.form_token(), "next": next_path}
        return self.http.post("/login", data=form)

    def open(self, path: str) -> httpx.Response:
        """Follow a link to a page."""
        return self.http.get(path, headers={"accept": "text/html"})
