"""Answers that a client has already are not sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.optuna_store.storage import Storage
from service.states import AttemptState
from tests.support.service.api import expect_problem
from tests.support.service.database_lab import Lab

Make = Callable[..., dict[str, Any]]
PATHS = (
    "/v1/studies",
    "/v1/studies/support-tone/trials",
    "/v1/studies/support-tone/trials/0",
    "/v1/studies/support-tone/best",
)


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    made = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    made.complete(1.5)
    return made


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_is_sent_once_and_again_when_it_has_changed(
    client: TestClient, lab: Lab, path: str
) -> None:
    first = client.get(path)
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == first.content
    lab.attempt(0, 2, AttemptState.LOST)
    lab.complete(1.25)
    changed = client.get(path, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_a_tag_that_is_none_is_refused(client: TestClient, lab: Lab) -> None:
    assert lab.id
    expect_problem(client.get(PATHS[0], headers={"If-None-Match": "not a tag"}), 422)
