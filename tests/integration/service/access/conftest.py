"""A server with a key of its own, and browsers that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.support.service.access import Browser
from tests.support.service.api import LOCAL

SERVER_KEY = "correct horse"


@pytest.fixture
def closed(settings: Settings) -> Iterator[TestClient]:
    """A server that needs a key; raw, without cookies of anybody's."""
    own = settings.model_copy(update={"api_key": SecretStr(SERVER_KEY)})
    with TestClient(create_app(own), base_url=LOCAL) as client:
        yield client


@pytest.fixture
def browser(closed: TestClient) -> Callable[..., Browser]:
    """Opens browsers, each with cookies and an address of its own."""

    def open_browser(address: str = "192.0.2.1", base_url: str = LOCAL) -> Browser:
        return Browser(closed.app, address, base_url)

    return open_browser
