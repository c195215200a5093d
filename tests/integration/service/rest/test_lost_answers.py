"""The command line over a connection that breaks after the request and before the answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from service.cli.root import app
from service.db import database
from service.db.models import Study
from service.maintenance import schema
from service.settings import Settings
from tests.integration.service.cli.test_cli import STUDY, serving


@contextmanager
def losing_answers(port: int, lost: int) -> Iterator[tuple[int, list[int]]]:
    """A proxy on a port of its own: whole requests come through, the first `lost` answers do not.

    Gives its port, and how many answers are still to be lost.
    """
    left = [lost]

    def carry(client: socket.socket) -> None:
        with closing(client), closing(socket.create_connection(("127.0.0.1", port))) as server:
            request = client.recv(65536)
            length = int(request.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            while len(request.partition(b"\r\n\r\n")[2]) < length:
                request += client.recv(65536)
            server.sendall(request.replace(b"keep-alive", b"close"))
            answer = b""
            while piece := server.recv(65536):
                answer += piece
            if left[0] > 0:
                left[0] -= 1  # the server has answered and nobody hears of it
            else:
                client.sendall(answer)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                carry(listener.accept()[0])
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        yield listener.getsockname()[1], left
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=30)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.delenv("NIGHTSWEEP_API_KEY", raising=False)
    settings = Settings(home=tmp_path / "home", port=port, data_roots=(tmp_path,), submission_check_seconds=0)
    schema.upgrade(settings)
    return settings


def test_a_submission_whose_answer_was_lost_is_made_once_and_answered(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n')
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    with serving(settings), losing_answers(settings.port, lost=1) as (port, left):
        server = f"http://127.0.0.1:{port}"
        result = CliRunner().invoke(app, ["submit", str(file), "--server", server, "--json"])
    assert left == [0]
    assert (result.exit_code, json.loads(result.stdout)["name"]) == (0, "tone")
    opened = database.open_database(settings)
    with opened.read() as session:
        assert session.scalar(select(func.count()).select_from(Study)) == 1
    opened.dispose()
