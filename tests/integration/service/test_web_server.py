"""Real sockets that hold on to the server: half headers, too many connections, bodies that nobody reads."""

from __future__ import annotations

import logging
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn

from service import web_server
from service.app import create_app
from service.db import database
from service.embedded.ports import free_port
from service.settings import Settings
from tests.support.service.api import on_sqlite
from tests.support.service.events import a_study, happened, serving
from tests.support.waiting import wait_until

HALVES = {
    "nothing at all": b"",
    "half a request line": b"GET /v1/stu",
    "half a header": b"GET /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: a",
    "a header without its end": b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n",
}
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

Serve = Callable[..., int]


@pytest.fixture
def serve(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts the server with other bounds; gives its port."""
    with ExitStack() as stack:

        def start(**bounds: float) -> int:
            for name, value in bounds.items():
                monkeypatch.setattr(web_server, name, value)
            port = free_port()
            server = web_server.Server(
                web_server.configuration(create_app(settings), port=port, log_level="error")
            )
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            wait_until(lambda: server.started, "the start of the server")
            return port

        yield start


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    answer = b""
    try:
        while part := connection.recv(65536):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@on_sqlite
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_header_that_does_not_end_is_given_up(serve: Serve, half: bytes) -> None:
    with connect(serve(HEADER_SECONDS=0.2)) as connection:
        connection.sendall(half)
        assert everything(connection).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


@contextmanager
def trickling(connection: socket.socket) -> Iterator[None]:
    """A byte is sent now and then meanwhile, until the connection is closed."""
    ended = threading.Event()

    def trickle() -> None:
        while not ended.wait(0.02):
            try:
                connection.sendall(b"a")
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@on_sqlite
def test_a_byte_now_and_then_does_not_help(serve: Serve) -> None:
    with connect(serve(HEADER_SECONDS=0.3)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        with trickling(connection):
            assert everything(connection).startswith(b"HTTP/1.1 408 ")


@on_sqlite
def test_half_a_second_request_is_given_up_too(serve: Serve) -> None:
    with connect(serve(HEADER_SECONDS=0.3)) as connection:
        connection.sendall(WHOLE + WHOLE[:-3])
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1 ") <= 2


@on_sqlite
def test_a_body_that_goes_on_after_its_answer_is_given_up(settings: Settings, serve: Serve) -> None:
    """Refused for its `Content-Length`, before any of it is read."""
    port = serve(HEADER_SECONDS=0.3)
    with connect(port) as connection:
        connection.sendall(
            b"POST /v1/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n{"
        )
        with trickling(connection):
            assert everything(connection).startswith(b"HTTP/1.1 413 ")


@on_sqlite
def test_whole_requests_on_one_connection_are_answered(serve: Serve) -> None:
    with connect(serve(HEADER_SECONDS=10)) as connection:
        for _ in range(3):
            connection.sendall(WHOLE)
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK")


@on_sqlite
def test_more_connections_than_allowed_are_refused_and_later_ones_accepted(serve: Serve) -> None:
    port = serve(HEADER_SECONDS=10, MAX_CONNECTIONS=5)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(5)]
        for connection in held:
            connection.sendall(HALVES["half a header"])
        with connect(port) as refused:
            assert everything(refused).startswith(b"HTTP/1.1 503 Too many connections\r\n")
        held[0].sendall(b"\r\n\r\n")  # those that are in are served
        assert held[0].recv(100).startswith(b"HTTP/1.1 ")
    deadline = time.monotonic() + 20
    while True:
        with connect(port) as connection:
            connection.sendall(WHOLE)
            if connection.recv(100).startswith(b"HTTP/1.1 200 OK"):
                break
        assert time.monotonic() < deadline


def test_there_are_fewer_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((1_048_576, 512), (256, 192), (64, 1), (10, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert web_server.max_connections() == most


@on_sqlite
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has prlimit for other processes")
def test_without_descriptors_the_log_has_one_traceback(settings: Settings) -> None:
    port = free_port()
    environment = {"NIGHTSWEEP_HOME": str(settings.home), "NIGHTSWEEP_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "api"], env=environment, stderr=subprocess.PIPE, text=True
    ) as api:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    connect(port).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            before = resource.prlimit(api.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (5, before[1]))
            with ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(connect(port))
                assert api.stderr is not None
                line = next(line for line in api.stderr if "socket.accept() out of system resource" in line)
                assert line
            resource.prlimit(api.pid, resource.RLIMIT_NOFILE, before)
            with connect(port) as connection:
                connection.sendall(WHOLE)
                assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            api.terminate()
            assert api.stderr.read().count("out of system resource") == 0
        finally:
            api.kill()


@on_sqlite
def test_every_line_of_the_log_has_its_time_and_level(settings: Settings) -> None:
    port = free_port()
    environment = {"NIGHTSWEEP_HOME": str(settings.home), "NIGHTSWEEP_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "api"], env=environment, stderr=subprocess.PIPE, text=True
    ) as api:
        try:
            assert api.stderr is not None
            lines = [next(line for line in api.stderr if "Uvicorn running" in line)]
            with connect(port) as connection:
                connection.sendall(WHOLE.replace(b"/healthz", b"/readyz"))
                assert connection.recv(100).startswith(b"HTTP/1.1 503")
            lines.append(next(line for line in api.stderr if "no coordinator is running" in line))
            api.terminate()
            lines += api.stderr.read().splitlines()
        finally:
            api.kill()
    assert len(lines) > 2
    assert [
        line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: ", line)
    ] == []


def test_the_loops_own_logger_is_limited(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda server: setattr(server, "started", True))
    monkeypatch.setattr(web_server, "configure_logging", lambda _: None)  # it would take over pytest's
    names = ("asyncio", "uvicorn.error")
    before = {name: list(logging.getLogger(name).filters) for name in names}
    try:
        web_server.run(settings)
        for name in names:
            assert len(logging.getLogger(name).filters) == len(before[name]) + 1
    finally:
        for name in names:
            logging.getLogger(name).filters[:] = before[name]


@on_sqlite
def test_a_client_that_reads_nothing_of_a_stream_is_cut_off(
    settings: Settings, service_database: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "WRITE_SECONDS", 0.2)
    study = a_study(service_database)
    with service_database.write() as session:
        session.add_all(happened(study, "a" * 500) for _ in range(20_000))
    with serving(settings) as server, connect(server.config.port) as connection:
        connection.sendall(b"GET /v1/events/stream?after=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        select.select([connection], [], [], 60)  # it has begun
        wait_until(lambda: not server.server_state.connections, "the end of the connection")
