"""What the tests of the REST API share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest
from starlette.testclient import TestClient

from service.settings import Settings

LOCAL = "http://127.0.0.1:8787"
"""A server without a key answers to this machine's own names alone."""

Make = Callable[..., dict[str, Any]]
# Nothing here reaches the database, so one of the two is enough.
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def expect_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document; fails unless the answer is one with this status."""
    assert (status, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    return problem


def stored(client: TestClient) -> int:
    """How many studies there are."""
    return len(client.get("/v1/studies").json()["items"])


def database_away(settings: Settings) -> Exception:
    """What the driver raises when the database cannot be reached."""
    if not settings.database_url.startswith("sqlite"):
        return psycopg.OperationalError("connection refused")
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    return error
