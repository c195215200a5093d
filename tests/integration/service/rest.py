"""What the tests of the REST API share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

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
