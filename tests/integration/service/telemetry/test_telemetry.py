"""Logs and traces of what ends: told once each, after the commit, and never of what was undone."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.app import create_app
from service.db.database import Database
from service.db.models import Attempt, Study
from service.db.transitions import advance_attempt, advance_study
from service.settings import Settings
from service.states import AttemptState, StudyState
from service.telemetry import logs
from service.telemetry.ends import AttemptEnd, End, StudyEnd, follow_ends
from service.telemetry.traces import Traces, open_traces
from tests.support.service.api import LOCAL

BEGAN = datetime(2026, 7, 1, 22, tzinfo=UTC)


@pytest.fixture
def study(service_database: Database) -> Study:
    def write(session: Session) -> Study:
        study = Study(name="tone", owner="anna", definition={}, created_at=BEGAN, state=StudyState.RUNNING)
        session.add(study)
        session.flush()
        session.add(
            Attempt(
                study_id=study.id,
                trial_number=3,
                ordinal=1,
                worker_id="w-1",
                artifact_dir="/a",
                dispatched_at=BEGAN,
                started_at=BEGAN + timedelta(seconds=5),
                state=AttemptState.RUNNING,
                tokens=700,
            )
        )
        return study

    return service_database.transact(write)


def end_attempt(session: Session, study: Study) -> None:
    session.get_one(Study, study.id, with_for_update=True)
    attempt = session.query(Attempt).filter_by(study_id=study.id).one()
    advance_attempt(session, attempt, AttemptState.FAILED, "no eval rows", at=BEGAN + timedelta(seconds=60))


def end_study(session: Session, study: Study) -> None:
    advance_study(session, session.get_one(Study, study.id), StudyState.COMPLETED, "all trials ended")


@contextmanager
def following(database: Database) -> Iterator[list[End]]:
    """What is told meanwhile."""
    found: list[End] = []
    leave = follow_ends(database, found.append)
    try:
        yield found
    finally:
        leave()


def test_each_end_is_told_once_after_its_commit(service_database: Database, study: Study) -> None:
    with following(service_database) as found:
        service_database.transact(lambda session: end_attempt(session, study))
        service_database.transact(lambda session: end_study(session, study))
        service_database.transact(lambda session: session.get_one(Study, study.id))
    attempt, end = found
    assert isinstance(attempt, AttemptEnd)
    assert (attempt.study, attempt.trial, attempt.attempt, attempt.state) == ("tone", 3, 1, "failed")
    assert (attempt.reason, attempt.worker, attempt.tokens) == ("no eval rows", "w-1", 700)
    assert isinstance(end, StudyEnd)
    assert (end.study_id, end.owner, end.state) == (study.id, "anna", "completed")


def test_each_of_two_followers_is_told_once(service_database: Database, study: Study) -> None:
    with following(service_database) as first, following(service_database) as second:
        service_database.transact(lambda session: end_attempt(session, study))
    assert len(first) == len(second) == 1


def test_what_is_rolled_back_is_not_told(service_database: Database, study: Study) -> None:
    with following(service_database) as found:
        with service_database.write() as session:
            end_attempt(session, study)
            session.flush()
            session.rollback()
        assert found == []
        service_database.transact(lambda session: end_attempt(session, study))
    assert len(found) == 1


def test_a_savepoint_in_between_tells_nothing_before_the_commit(
    service_database: Database, study: Study
) -> None:
    with following(service_database) as found, service_database.write() as session:
        end_attempt(session, study)
        with session.begin_nested():
            session.flush()
        assert found == []
    assert len(found) == 1


def test_nobody_is_told_after_leaving(service_database: Database, study: Study) -> None:
    found: list[End] = []
    follow_ends(service_database, found.append)()
    service_database.transact(lambda session: end_attempt(session, study))
    assert found == []


# -- logs ------------------------------------------------------------------------------------------


@pytest.fixture
def json_log(caplog: pytest.LogCaptureFixture) -> Iterator[io.StringIO]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonFormatter())
    caplog.set_level(logging.INFO)
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


def test_an_end_is_one_json_object_with_its_ids(
    service_database: Database, study: Study, json_log: io.StringIO
) -> None:
    leave = follow_ends(service_database, logs.log_end)
    service_database.transact(lambda session: end_attempt(session, study))
    leave()
    [line] = json_log.getvalue().splitlines()
    record = json.loads(line)
    assert datetime.fromisoformat(record.pop("time")).tzinfo == UTC
    assert record == {
        "level": "INFO",
        "logger": "service.telemetry.logs",
        "message": "trial 3 of tone, attempt 1: failed: no eval rows",
        "study": "tone",
        "study_id": study.id,
        "trial": 3,
        "attempt": 1,
        "state": "failed",
        "worker": "w-1",
    }


def test_a_record_cannot_be_made_to_look_like_two(json_log: io.StringIO) -> None:
    log = logging.getLogger("a.library")
    with logs.about(study="tone"):
        log.warning('a name with\n{"level": "ERROR"} and \x1b[31m')
        try:
            raise ValueError("broken\x1b")
        except ValueError:
            log.exception("met an error")
    first, second = json_log.getvalue().splitlines()
    assert json.loads(first)["message"] == 'a name with {"level": "ERROR"} and \\x1b[31m'
    assert json.loads(first)["study"] == "tone"
    assert "ValueError: broken\\x1b" in json.loads(second)["exception"]


def test_the_setting_decides_how_a_process_logs(tmp_path: Path) -> None:
    code = (
        "import logging; from service.settings import Settings; from service.telemetry import logs;"
        "logs.configure_logging(Settings()); logging.getLogger('x').info('hello')"
    )

    def written(form: str) -> str:
        environment = {**os.environ, "NIGHTSWEEP_HOME": str(tmp_path), "NIGHTSWEEP_LOG_FORMAT": form}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        return done.stderr

    assert written("text").endswith(" INFO x: hello\n")
    assert json.loads(written("json"))["message"] == "hello"


# -- traces ----------------------------------------------------------------------------------------


class Collector(HTTPServer):
    """An OpenTelemetry collector: it keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: dict[str, Span] = {}
        self.services: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        for of_resource in request.resource_spans:
            for attribute in of_resource.resource.attributes:
                if attribute.key == "service.name":
                    self.server.services.add(attribute.value.string_value)
            for scope in of_resource.scope_spans:
                self.server.spans.update({span.name: span for span in scope.spans})
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def traces_to(collector: Collector, settings: Settings) -> Traces:
    found = open_traces(settings.model_copy(update={"traces_url": collector.url}), "nightsweep-coordinator")
    assert found is not None
    return found


def test_a_study_is_one_trace_of_its_wait_its_attempts_and_its_end(
    service_database: Database, study: Study, collector: Collector, settings: Settings
) -> None:
    traces = traces_to(collector, settings)
    leave = follow_ends(service_database, traces.tell)
    service_database.transact(lambda session: end_attempt(session, study))
    service_database.transact(lambda session: end_study(session, study))
    leave()
    traces.close()
    spans = collector.spans
    assert set(spans) == {"study", "queued", "attempt"}
    assert {span.trace_id.hex() for span in spans.values()} == {study.id}
    root = spans["study"]
    assert not root.parent_span_id
    assert spans["attempt"].parent_span_id == spans["queued"].parent_span_id == root.span_id
    began = int(BEGAN.timestamp()) * 10**9
    attempt = spans["attempt"]
    assert (attempt.start_time_unix_nano, attempt.end_time_unix_nano) == (began, began + 60 * 10**9)
    attributes = {one.key: one.value for one in attempt.attributes}
    assert attributes["trial"].int_value == 3
    assert attributes["waited_seconds"].double_value == 5
    assert attempt.status.code == Status.STATUS_CODE_ERROR
    assert attempt.status.message == "no eval rows"
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert collector.services == {"nightsweep-coordinator"}


def test_a_receiver_that_is_away_disturbs_nobody(
    service_database: Database, study: Study, settings: Settings
) -> None:
    away = settings.model_copy(update={"traces_url": "http://127.0.0.1:1/v1/traces"})
    traces = open_traces(away, "nightsweep-coordinator")
    assert traces is not None
    leave = follow_ends(service_database, traces.tell)
    service_database.transact(lambda session: end_attempt(session, study))
    leave()
    traces.close()
    with service_database.read() as session:
        assert session.query(Attempt).one().state == AttemptState.FAILED


def test_a_submission_is_the_first_span_of_its_studys_trace(
    collector: Collector, settings: Settings, definition: Callable[..., dict[str, Any]]
) -> None:
    app = create_app(settings.model_copy(update={"traces_url": collector.url}))
    with TestClient(app, base_url=LOCAL) as client:
        submitted = client.post("/v1/studies", json=definition())
        assert submitted.status_code == 201, submitted.text
    [span] = collector.spans.values()
    assert (span.name, span.trace_id.hex()) == ("submit", submitted.json()["id"])
    assert collector.services == {"nightsweep-api"}


def test_traces_are_off_by_default(settings: Settings) -> None:
    assert open_traces(settings, "nightsweep-api") is None
