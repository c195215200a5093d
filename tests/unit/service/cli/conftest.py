"""A way to run commands without a server."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli import options
from service.cli.root import app
from service.client import Client
from tests.support.fakes.api import FakeApi, Reply


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line against a fake API, without waiting between tries."""
    monkeypatch.delenv("NIGHTSWEEP_API_KEY", raising=False)
    monkeypatch.setenv("NIGHTSWEEP_SERVER", "http://sweeps.example")

    def run_command(replies: dict[str, Reply | list[Reply]] | FakeApi, *arguments: str) -> Result:
        api = replies if isinstance(replies, FakeApi) else FakeApi(replies)
        client = functools.partial(Client, transport=api.transport, sleep=lambda _: None)
        monkeypatch.setattr(options, "Client", client)
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return run_command
